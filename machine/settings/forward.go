package settings

import (
	"slices"

	"github.com/spf13/pflag"
)

// Forward adds the settings to fs that a server in a sandbox accepts. It returns a function that
// converts the flags that were set into the server's arguments. Files and the environment do not
// apply: they describe this machine's own cluster. Settings of directories and of the API's address
// are not forwarded: a sandbox has its own.
func Forward(fs *pflag.FlagSet) (args func() []string) {
	rows := Table()
	flags := make(map[string]*flag)
	for _, s := range rows {
		if len(s.Verbs) == 0 && s.Section != sectionFiles || slices.Contains(s.Verbs, "run") {
			flags[s.Name] = s.register(fs)
		}
	}
	return func() []string {
		var args []string
		for _, s := range rows {
			f := flags[s.Name]
			if f == nil {
				continue
			}
			for _, text := range f.texts {
				args = append(args, "--"+s.Name+"="+text)
			}
		}
		return args
	}
}
