package server

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
)

// arg is one upstream flag with its value.
type arg struct{ name, value string }

// parseArgs sets mote's own arguments and then the user's in an upstream component's flags. option
// is the mote option that the user's arguments came from, e.g. "apiserver-arg"; errors name it.
func parseArgs(sections cliflag.NamedFlagSets, option string, ours []arg, users []string) error {
	flags := pflag.NewFlagSet(option, pflag.ContinueOnError)
	flags.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	flags.SetOutput(deprecations{option})
	for _, section := range sections.FlagSets {
		flags.AddFlagSet(section)
	}
	given, err := splitArgs(flags, option, users)
	if err != nil {
		return err
	}
	for _, a := range ours {
		// A list flag that is set again gets more items, so mote's value is left out where the user
		// gave one. Admission plugins are the exception: to enable one more must not drop
		// NodeRestriction.
		replaced := slices.ContainsFunc(given, func(user arg) bool { return user.name == a.name })
		if replaced && a.name != "enable-admission-plugins" {
			continue
		}
		if err := flags.Set(a.name, a.value); err != nil {
			return fmt.Errorf("set %s=%s: %w", a.name, a.value, err)
		}
	}
	for _, a := range given {
		if err := flags.Set(a.name, a.value); err != nil {
			return fmt.Errorf("invalid --%s %q: %w", option, a.name+"="+a.value, err)
		}
	}
	return nil
}

// splitArgs parses name=value, or a name alone where upstream's flag needs no value.
func splitArgs(flags *pflag.FlagSet, option string, users []string) ([]arg, error) {
	logging := pflag.NewFlagSet("logging", pflag.ContinueOnError)
	logsapi.AddFlags(logsapi.NewLoggingConfiguration(), logging)
	var given []arg
	for _, user := range users {
		name, value, hasValue := strings.Cut(user, "=")
		flag := flags.Lookup(name)
		if flag == nil {
			return nil, fmt.Errorf("unknown --%s %q: there is no such argument; give name=value without leading dashes", option, name)
		}
		if logging.Lookup(flag.Name) != nil && flag.Name != "v" {
			return nil, fmt.Errorf("unsupported --%s %q: all parts write mote's log; set its format and level with mote's own options", option, name)
		}
		if !hasValue {
			if flag.NoOptDefVal == "" {
				return nil, fmt.Errorf("invalid --%s %q: it needs a value, as in %s=value", option, user, name)
			}
			value = flag.NoOptDefVal
		}
		given = append(given, arg{flag.Name, value})
	}
	return given, nil
}

// deprecations turns pflag's output about deprecated flags into log records.
type deprecations struct{ option string }

func (d deprecations) Write(p []byte) (int, error) {
	slog.Warn("upstream argument is deprecated", "option", d.option, "message", strings.TrimSpace(string(p)))
	return len(p), nil
}

// argNames returns the names in the user's arguments, in upstream's spelling.
func argNames(users []string) []string {
	var names []string
	for _, user := range users {
		name, _, _ := strings.Cut(user, "=")
		names = append(names, strings.ReplaceAll(name, "_", "-"))
	}
	return names
}

// argValues returns the values that the user gives to one argument.
func argValues(users []string, name string) []string {
	var values []string
	for i, given := range argNames(users) {
		if _, value, _ := strings.Cut(users[i], "="); given == name {
			values = append(values, value)
		}
	}
	return values
}
