package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/mote-k8s/mote/internal/layout"
)

// DefaultConfig is the path of the configuration file without --config.
const DefaultConfig = layout.Config

// Env returns the environment variable of the setting name.
func Env(name string) string {
	return "MOTE_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// CheckEnviron refuses variables that look like a misspelt setting. It ignores other variables with
// the same prefix: a Service called mote sets some in pods.
func CheckEnviron(environ []string) error {
	const typos = 2 // two swapped letters count as two
	known := []string{Env("config")}
	for _, s := range Table() {
		known = append(known, Env(s.Name))
	}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if value == "" || !strings.HasPrefix(name, Env("")) || slices.Contains(known, name) || slices.Contains(otherVariables(), name) {
			continue
		}
		if near := Nearest(name, known); near != "" && distance(name, near) <= typos {
			return fmt.Errorf("unknown variable %s; did you mean %s?", name, near)
		}
	}
	return nil
}

// otherVariables returns mote's variables that are not settings.
func otherVariables() []string {
	return []string{"MOTE_CACHE_DIR", "MOTE_SANDBOX", "MOTE_SANDBOX_NAME", "MOTE_BINARY", "MOTE_TEST"}
}

// Loader loads the settings of one command.
type Loader struct {
	config string
	flags  map[string]*flag
}

// Register adds the flags that verb takes to fs: --config, and the rows of the table for verb.
func Register(fs *pflag.FlagSet, verb string) *Loader {
	l := &Loader{flags: make(map[string]*flag)}
	fs.StringVar(&l.config, "config", "", "configuration `file`; see also "+DefaultConfig+".d")
	fs.Lookup("config").Annotations = map[string][]string{annotation: {sectionFiles}}
	fs.Lookup("config").DefValue = DefaultConfig
	for _, s := range Table() {
		if !s.takenBy(verb) {
			continue
		}
		l.flags[s.Name] = s.register(fs)
	}
	return l
}

// register adds s to fs. A flag is checked when it is parsed, on Settings of its own, and applied
// in Load.
func (s *Setting) register(fs *pflag.FlagSet) *flag {
	f := &flag{value: s.value(&Settings{})}
	help := s.Help
	if f.value.list {
		help += "; may be repeated"
	}
	if len(f.value.choices) > 0 {
		help += " (" + strings.Join(f.value.choices, ", ") + ")"
	}
	pf := fs.VarPF(f, s.Name, "", help)
	pf.DefValue = s.Default
	if s.DefaultHelp != "" {
		pf.DefValue = s.DefaultHelp
	}
	pf.Annotations = map[string][]string{annotation: {s.Section}}
	return f
}

// annotation is the key under which a flag stores its section of the table.
const annotation = "mote-section"

// Section returns the section of the table that a flag belongs to, or "" for a verb's own flags.
func Section(f *pflag.Flag) string {
	if s := f.Annotations[annotation]; len(s) > 0 {
		return s[0]
	}
	return ""
}

// Sections returns the table's sections in order.
func Sections() []string {
	var out []string
	for _, s := range Table() {
		if !slices.Contains(out, s.Section) {
			out = append(out, s.Section)
		}
	}
	return out
}

// Default returns the value of the setting name when it is not set.
func Default(name string) string {
	for _, s := range Table() {
		if s.Name == name {
			return s.Default
		}
	}
	return ""
}

// Choices returns the values that the setting name is limited to, or nil when it is not limited.
func Choices(name string) []string {
	for _, s := range Table() {
		if s.Name == name {
			return s.value(&Settings{}).choices
		}
	}
	return nil
}

func (s *Setting) takenBy(verb string) bool {
	if len(s.Verbs) == 0 {
		return verb == "server"
	}
	return slices.ContainsFunc(s.Verbs, func(v string) bool { return verb == v || strings.HasPrefix(verb, v+" ") })
}

// flag is a setting on the command line. Its value is checked and then kept as text.
type flag struct {
	value value
	texts []string
}

func (f *flag) String() string { return strings.Join(f.texts, " ") }
func (f *flag) Type() string   { return f.value.kind }

func (f *flag) Set(text string) error {
	if err := f.value.set(text); err != nil {
		return err
	}
	if !f.value.list {
		f.texts = nil // the last one wins, as usual
	}
	f.texts = append(f.texts, text)
	return nil
}

// Load reads the files and the environment, applies the flags over them, and returns the complete
// settings.
func (l *Loader) Load(getenv func(string) string) (*Settings, error) {
	s := &Settings{}
	rows := Table()
	for _, row := range rows {
		if row.Default == "" {
			continue
		}
		if err := row.value(s).set(row.Default); err != nil {
			return nil, fmt.Errorf("default of %s: %w", row.Name, err)
		}
	}
	if err := l.loadFiles(s, getenv); err != nil {
		return nil, err
	}
	for _, row := range rows {
		if err := loadEnv(row, s, getenv(Env(row.Name))); err != nil {
			return nil, err
		}
		f := l.flags[row.Name]
		if f == nil || len(f.texts) == 0 {
			continue
		}
		if err := replace(row.value(s), f.texts); err != nil {
			return nil, fmt.Errorf("--%s: %w", row.Name, err)
		}
	}
	if err := s.complete(); err != nil {
		return nil, err
	}
	return s, nil
}

// loadEnv applies one variable. The items of a list are separated by white space, because many
// arguments contain commas.
func loadEnv(row Setting, s *Settings, text string) error {
	if text == "" {
		return nil
	}
	v, texts := row.value(s), []string{text}
	if v.list {
		texts = strings.Fields(text)
	}
	if err := replace(v, texts); err != nil {
		return fmt.Errorf("%s: %w", Env(row.Name), err)
	}
	return nil
}

func replace(v value, texts []string) error {
	v.clear()
	for _, t := range texts {
		if err := v.set(t); err != nil {
			return err
		}
	}
	return nil
}

// loadFiles applies the configuration file and the files in its ".d" directory. Only the default
// file may be missing.
func (l *Loader) loadFiles(s *Settings, getenv func(string) string) error {
	path := l.config
	if path == "" {
		path = getenv(Env("config"))
	}
	optional := path == ""
	if optional {
		path = DefaultConfig
	}
	err := loadFile(path, s)
	if err != nil && !(optional && errors.Is(err, fs.ErrNotExist)) {
		return err
	}
	entries, err := os.ReadDir(path + ".d")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read configuration: %w", err)
	}
	for _, e := range entries { // sorted by name
		if filepath.Ext(e.Name()) != ".yaml" || e.IsDir() {
			continue
		}
		if err := loadFile(filepath.Join(path+".d", e.Name()), s); err != nil {
			return err
		}
	}
	return nil
}
