package manifests

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"go.yaml.in/yaml/v2"
	jsonutil "k8s.io/apimachinery/pkg/util/json"
)

// documents returns the YAML documents and JSON values of a text as JSON values, without null. It
// returns all of them, or an error with the line in the file.
//
// kubectl splits a text at lines of "---" and takes the first YAML document of each part. So it
// drops without a message the text after "...", a JSON object that is not the first, and all
// documents except the first of a text in UTF-16 (kubernetes/kubernetes#5840, #34886).
func documents(data []byte) ([]any, error) {
	text, err := toUTF8(data)
	if err != nil {
		return nil, err
	}
	var all []any
	for start := 0; ; {
		end, next := len(text), -1
		if mark := documentEnd.FindStringIndex(text[start:]); mark != nil {
			end, next = start+mark[0], start+mark[1]
		}
		if all, err = readPart(all, text[start:end], strings.Count(text[:start], "\n")); err != nil {
			return nil, err
		}
		if next < 0 {
			return slices.DeleteFunc(all, func(v any) bool { return v == nil }), nil
		}
		start = next
	}
}

// documentEnd matches YAML's document end marker. The parser requires "---" after it; YAML 1.2 does
// not.
var documentEnd = regexp.MustCompile(`(?m)^\.\.\.(?:[ \t\r]|$)`)

// readPart appends to all the documents of a text without document end markers. lines is the number
// of lines that the file has before the text.
func readPart(all []any, text string, lines int) ([]any, error) {
	all, read := readJSON(all, text)
	last := lines + strings.Count(strings.TrimRight(text, "\n"), "\n") + 1
	lines += strings.Count(text[:read], "\n")
	text = text[read:]
	decoder := yaml.NewDecoder(strings.NewReader(text))
	for number := 0; ; number++ {
		var d document
		err := decoder.Decode(&d)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err == nil && d.twice != "" {
			err = twice(text, number)
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", len(all)+1, plain(err, lines, last))
		}
		all = append(all, d.value)
	}
}

// readJSON appends to all the JSON values at the beginning of a text, and returns their number of
// bytes. The first must be an object. Other text is not read: it may be YAML, whose parser has the
// better errors.
func readJSON(all []any, text string) ([]any, int) {
	if !strings.HasPrefix(strings.TrimSpace(text), "{") {
		return all, 0
	}
	decoder, read := json.NewDecoder(strings.NewReader(text)), 0
	decoder.UseNumber()
	for {
		var value any
		if decoder.Decode(&value) != nil || jsonutil.ConvertInterfaceNumbers(&value, 0) != nil {
			return all, read
		}
		all, read = append(all, value), int(decoder.InputOffset())
	}
}

// document is one YAML document.
type document struct {
	value any    // as in JSON
	twice string // a key of the document itself that appears twice
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (d *document) UnmarshalYAML(unmarshal func(any) error) error {
	var value any
	if err := unmarshal(&value); err != nil {
		return err
	}
	var err error
	if d.value, err = fromYAML(value); err != nil {
		return err
	}
	// kubectl takes the last of two equal keys. At deeper levels its users rely on that. At the top
	// level the cause is an object without a separator before it, and the first object would be
	// dropped.
	top, ok := d.value.(map[string]any)
	if !ok {
		return nil
	}
	var items yaml.MapSlice
	if err := unmarshal(&items); err != nil {
		return err
	}
	seen := make(map[any]bool, len(top))
	for _, item := range items {
		if key, ok := item.Key.(string); ok && seen[key] {
			d.twice = key
		}
		seen[item.Key] = true
	}
	return nil
}

// ignored accepts any YAML value and stores nothing.
type ignored struct{}

// UnmarshalYAML implements yaml.Unmarshaler.
func (*ignored) UnmarshalYAML(func(any) error) error { return nil }

// twice returns an error, with its line, for a key that the document has twice.
func twice(text string, document int) error {
	decoder := yaml.NewDecoder(strings.NewReader(text))
	decoder.SetStrict(true)
	var err error
	for range document + 1 {
		err = decoder.Decode(&map[any]ignored{})
	}
	var issues *yaml.TypeError
	if errors.As(err, &issues) {
		err = errors.New("yaml: " + issues.Errors[0])
	}
	return fmt.Errorf("%w; separate objects by a line of ---", err)
}

// fromYAML converts a value of the YAML parser to its JSON form. sigs.k8s.io/yaml does the same,
// though for the first document only.
func fromYAML(value any) (any, error) {
	switch v := value.(type) {
	case map[any]any:
		object := make(map[string]any, len(v))
		for key, value := range v {
			name, err := keyName(key)
			if err != nil {
				return nil, err
			}
			if object[name], err = fromYAML(value); err != nil {
				return nil, err
			}
		}
		return object, nil
	case []any:
		list := make([]any, len(v))
		for i, item := range v {
			var err error
			if list[i], err = fromYAML(item); err != nil {
				return nil, err
			}
		}
		return list, nil
	case int:
		return int64(v), nil
	case uint64:
		return float64(v), nil // beyond int64, as for JSON's numbers
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, errors.New("a number is not finite; quote it if it is a text")
		}
		return v, nil
	}
	return value, nil // a text, a boolean, an int64 or nil
}

// keyName returns the text of a YAML key, in the same form as sigs.k8s.io/yaml.
func keyName(key any) (string, error) {
	switch k := key.(type) {
	case string:
		return k, nil
	case int:
		return strconv.Itoa(k), nil
	case int64:
		return strconv.FormatInt(k, 10), nil
	case float64:
		return strconv.FormatFloat(k, 'g', -1, 32), nil
	case bool:
		return strconv.FormatBool(k), nil
	}
	return "", errors.New("a key is neither a text nor a number; quote it")
}

var (
	// contents matches the parts of the text that the YAML parser quotes. They may be secret.
	contents = regexp.MustCompile("`[^`]*`")
	lineOf   = regexp.MustCompile(`line (\d+)`)
	// counted matches the errors of the YAML parser that count lines from 0. Errors of its scanner
	// do not.
	counted = regexp.MustCompile(`did not find expected (<|node|'-'|key|',')`)
)

// plain returns an error of the YAML parser without the quoted text and with the line in the file.
// more is the number of lines in the file before the parsed text. last is the last line of that
// text; the parser counts one line more at its end.
func plain(err error, more, last int) error {
	text := contents.ReplaceAllString(err.Error(), "...")
	text = strings.Replace(text, "yaml: unmarshal errors:\n  ", "yaml: ", 1)
	if counted.MatchString(text) {
		more++
	}
	text = lineOf.ReplaceAllStringFunc(text, func(match string) string {
		line, err := strconv.Atoi(match[len("line "):])
		if err != nil {
			return match
		}
		return fmt.Sprintf("line %d", min(line+more, last))
	})
	if strings.Contains(text, "did not find expected <document start>") {
		text += "; separate objects by a line of ---"
	}
	return errors.New(text)
}

// toUTF8 returns a text in UTF-8. The input is UTF-8 or, after a byte order mark, UTF-16.
func toUTF8(data []byte) (string, error) {
	if text, ok := bytes.CutPrefix(data, []byte("\uFEFF")); ok {
		data = text
	}
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(data, []byte{0xFF, 0xFE}):
		order = binary.LittleEndian
	case bytes.HasPrefix(data, []byte{0xFE, 0xFF}):
		order = binary.BigEndian
	case utf8.Valid(data):
		return string(data), nil
	default:
		good := 0
		for r, size := utf8.DecodeRune(data); r != utf8.RuneError || size > 1; r, size = utf8.DecodeRune(data[good:]) {
			good += size
		}
		return "", fmt.Errorf("line %d: it is neither UTF-8 nor UTF-16 with a byte order mark", 1+bytes.Count(data[:good], []byte("\n")))
	}
	if len(data)%2 != 0 {
		return "", errors.New("it is UTF-16 with half a character at its end")
	}
	units := make([]uint16, 0, len(data)/2)
	for i := 2; i < len(data); i += 2 {
		units = append(units, order.Uint16(data[i:]))
	}
	runes := utf16.Decode(units)
	if i := slices.Index(runes, utf8.RuneError); i >= 0 {
		return "", fmt.Errorf("line %d: it is UTF-16 with a character that does not exist", 1+strings.Count(string(runes[:i]), "\n"))
	}
	return string(runes), nil
}
