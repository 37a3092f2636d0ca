package manifests

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/resource"
)

func idents(objects []*unstructured.Unstructured) (names []string) {
	for _, u := range objects {
		names = append(names, identity(u).String())
	}
	return names
}

// kubectlNames returns the objects that `kubectl apply` reads in a text. It uses kubectl's own
// reader.
func kubectlNames(text []byte) ([]string, error) {
	infos, err := resource.NewBuilder(genericclioptions.NewConfigFlags(false)).Local().Unstructured().Flatten().
		Stream(bytes.NewReader(text), "text").Do().Infos()
	var names []string
	for _, info := range infos {
		names = append(names, identity(info.Object.(*unstructured.Unstructured)).String())
	}
	return names, err
}

func wide(text string, order binary.AppendByteOrder) string {
	data := order.AppendUint16(nil, 0xFEFF)
	for _, unit := range utf16.Encode([]rune(text)) {
		data = order.AppendUint16(data, unit)
	}
	return string(data)
}

const (
	mapA, mapB   = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n"
	jsonA, jsonB = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}`, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"}}`
)

// TestParseReadsAll checks that kubectl never reads more of the same text. nil stands for an error
// of kubectl.
func TestParseReadsAll(t *testing.T) {
	both, one := []string{"ConfigMap a", "ConfigMap b"}, []string{"ConfigMap a"}
	for name, c := range map[string]struct {
		text          string
		want, kubectl []string
	}{
		"separator":               {mapA + "---\n" + mapB, both, both},
		"comments":                {"# a comment\n--- # another\n" + mapA + "---\n\n---\n# no object\n---\n" + mapB + "---\n", both, both},
		"no new line at the end":  {mapA + "---\n" + strings.TrimSpace(mapB), both, both},
		"CRLF":                    {strings.ReplaceAll(mapA+"---\n"+mapB, "\n", "\r\n"), both, both},
		"byte order mark":         {"\uFEFF" + mapA + "---\n" + mapB, both, both},
		"byte order mark, JSON":   {"\uFEFF" + jsonA + "\n" + jsonB, both, one},
		"nothing":                 {"", nil, nil},
		"comments only":           {"# nothing\n---\n# here\n", nil, nil},
		"null":                    {"null\n---\n~\n---\n" + mapA, one, one},
		"JSON":                    {jsonA, one, one},
		"JSON stream":             {jsonA + "\n" + jsonB, both, both},
		"JSON stream on one line": {jsonA + jsonB, both, both},
		"JSON in lines":           {"{\n\"apiVersion\": \"v1\",\n\"kind\": \"ConfigMap\",\n\"metadata\": {\"name\":\"a\"}\n}\n" + jsonB, both, both},
		"JSON and separator":      {jsonA + "\n---\n" + jsonB, both, both},
		"JSON stream, then YAML":  {jsonA + "\n" + jsonB + "\n---\n" + strings.Replace(mapA, "name: a", "name: c", 1), append(slices.Clone(both), "ConfigMap c"), nil},
		"JSON, then YAML":         {jsonA + "\n---\n" + mapB, both, both},
		"JSON and a comment":      {jsonA + " # a\n", one, one},
		"flow mapping":            {"{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n---\n" + mapB, both, both},
		"document end":            {mapA + "...\n" + mapB, both, one},
		"document end, CRLF":      {strings.ReplaceAll(mapA+"...\n"+mapB, "\n", "\r\n"), both, one},
		"document end, separator": {mapA + "... # end\n---\n" + mapB + "...\n", both, both},
		"document end, directive": {"%YAML 1.1\n---\n" + mapA + "...\n%YAML 1.1\n---\n" + mapB, both, nil},
		"document end, JSON":      {mapA + "...\n" + jsonA[:len(jsonA)-4] + "b\"}}\n" + strings.Replace(jsonB, `"b"`, `"c"`, 1), append(slices.Clone(both), "ConfigMap c"), one},
		"on the separator's line": {"--- " + jsonA + "\n--- " + jsonB + "\n", both, nil},
		"tag on that line":        {"--- !!map\n" + mapA + "--- # comment\n" + mapB, both, nil},
		"UTF-16LE":                {wide(mapA+"---\n"+mapB, binary.LittleEndian), both, one},
		"UTF-16BE":                {wide(mapA+"---\n"+mapB, binary.BigEndian), both, one},
		"UTF-16, JSON":            {wide(jsonA+"\n"+jsonB, binary.LittleEndian), both, nil},
		"text with separators":    {mapA + "data:\n  text: |\n    a\n    ---\n    b\n    ...\n  quoted: \"\n   --- \n   ...\"\n---\n" + mapB, both, both},
		"anchors":                 {"apiVersion: v1\nkind: ConfigMap\nmetadata: &m {name: a}\ndata: {x: &x y, z: *x}\n---\n" + mapB, both, both},
		"merge keys":              {"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  <<: {name: a, namespace: x}\n", []string{"ConfigMap x/a"}, []string{"ConfigMap x/a"}},
		"twice further down":      {mapA + "data: {x: a, x: b}\n", one, one},
		"List":                    {"apiVersion: v1\nkind: List\nitems:\n- " + jsonA + "\n- " + jsonB + "\n", both, both},
		"List in a List":          {`{"apiVersion":"v1","kind":"List","items":[` + jsonA + `,{"apiVersion":"v1","kind":"List","items":[` + jsonB + `]}]}`, both, nil},
		"typed List":              {"apiVersion: v1\nkind: ConfigMapList\nitems: [{metadata: {name: a}}, {metadata: {name: b}}]\n", both, both},
		"empty List":              {"apiVersion: v1\nkind: List\nitems: []\n---\napiVersion: v1\nkind: List\nitems:\n---\n" + mapA, one, one},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse([]byte(c.text))
			require.NoError(t, err)
			require.Equal(t, c.want, idents(got))
			names, err := kubectlNames([]byte(c.text))
			if c.kubectl == nil && c.want != nil {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.kubectl, names)
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		mapA + "---\nkind: [":                          "document 2: yaml: line 5",
		mapA + "...\n" + mapB + "---\n# more\nkind: ]": "document 3: yaml: line 10",
		mapA + mapB:                                                     `document 1: yaml: line 4: key "apiVersion" already set in map; separate objects by a line of ---`,
		"---\n" + mapA + "---\n" + mapA + mapB:                          `document 2: yaml: line 9: key "apiVersion" already set`,
		"# first\n" + jsonA + "\n" + jsonB:                              "separate objects by a line of ---",
		jsonA + "\n---\n" + jsonA + "\n" + jsonB:                        "separate objects by a line of ---",
		jsonA + "," + jsonB:                                             "document 2",
		jsonA + "\n" + jsonB[:len(jsonB)-1]:                             "document 2: yaml: line",
		"just words":                                                    "document 1",
		"kind: ConfigMap\nmetadata: {name: a}":                          "no apiVersion",
		"apiVersion: v1\nkind: Pod\nmetadata: {generateName: a-}":       "object 1: Pod has no name; generateName",
		"apiVersion: v1\nkind: List\nitems: [{metadata: {name: a}}]":    "item 1",
		"apiVersion: v1\nkind: List\nitems: [words]":                    "document 1",
		"- apiVersion: v1\n  kind: ConfigMap\n  metadata: {name: a}":    "document 1",
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n\tx: ":   "document 1",
		mapA + "data: {x: .nan}":                                        "not finite",
		mapA + "data: {? [a] : b}":                                      "key",
		mapA + "data: {x: *unknown}":                                    "unknown anchor",
		mapA + "x: \xff\n":                                              "line 4: it is neither UTF-8 nor UTF-16",
		wide(mapA, binary.LittleEndian) + "x":                           "half a character",
		wide(mapA, binary.LittleEndian) + "\x00\xd8\x00\xd8":            "line 4: it is UTF-16 with a character that does not exist",
		wide(mapA, binary.LittleEndian)[2:]:                             "control characters",
		strings.ReplaceAll(mapA+"---\n"+mapA, "\n", "\r") + "\r" + mapB: "document 2",
		mapA + "---x\n" + mapB:                                          "document 1",
		mapA + "---\n" + strings.Repeat("[", 20000):                     "document 2",
		"a: &a [x,x,x,x,x,x,x,x,x]\n" + bomb("abcdefghi") + "kind: a\n": "excessive aliasing",
	} {
		objects, err := parse([]byte(text))
		require.ErrorContains(t, err, want, text)
		require.Empty(t, objects, "all or nothing")
	}
}

// bomb returns keys, each nine times as large as the one before.
func bomb(keys string) string {
	var text strings.Builder
	for i := 1; i < len(keys); i++ {
		fmt.Fprintf(&text, "%c: &%c [%s]\n", keys[i], keys[i], strings.TrimSuffix(strings.Repeat("*"+keys[i-1:i]+",", 9), ","))
	}
	return text.String()
}

// TestValuesAreAsKubectlReadsThem checks values and keys of kinds that YAML has and JSON lacks.
func TestValuesAreAsKubectlReadsThem(t *testing.T) {
	text := mapA + `data:
  {yes: on, 1: 1, -2: -2, 1.5: 1.0, 0x10: 0x10, 010: 010, big: 18446744073709551615, int64: 9223372036854775807, large: 1e400x, e: 1e3,
   date: 2001-12-14, time: 2001-12-14t21:59:43.10-05:00, null: x, ~: y, none: , text: "yes", binary: !!binary aGVsbG8=, float: 0.1,
   huge: 123456789012345678901234567890, sexagesimal: 12:30:45, under_score: 1_000, list: [a, {b: c}, ~, [true]], "": empty}
`
	text = strings.Replace(text, "null: x, ~: y, ", "", 1) // a null key is an error for both
	got, err := parse([]byte(text))
	require.NoError(t, err)
	var want map[string]any
	require.NoError(t, utilyaml.Unmarshal([]byte(text), &want))
	require.JSONEq(t, toJSON(t, want), toJSON(t, got[0].Object))
	got[0].DeepCopy() // panics if a value has a type that JSON lacks

	got, err = parse([]byte(`{"apiVersion":"v1","kind":"X","metadata":{"name":"a"},"int":9007199254740993,"float":1.5}`))
	require.NoError(t, err)
	require.Equal(t, int64(9007199254740993), got[0].Object["int"])
	require.InDelta(t, 1.5, got[0].Object["float"], 0)
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	require.NoError(t, err)
	return string(text)
}

// TestNothingIsDropped writes random objects in random ways. Either all of them are read, or there
// is an error. If kubectl reads the text without an error, it reads no object that is not among
// them.
func TestNothingIsDropped(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	pick := func(list ...string) string { return list[random.IntN(len(list))] }
	whole := 0
	for round := range 3000 {
		var text strings.Builder
		var want []string
		for i := range random.IntN(5) + 1 {
			name := fmt.Sprintf("o%d", i)
			want = append(want, "ConfigMap "+name)
			if i > 0 || random.IntN(4) == 0 {
				text.WriteString(pick("---\n", "---\n", "--- ", "...\n", "...\n---\n", "\n", "", "---\r\n", "--- # x\n", "# x\n---\n", "\uFEFF---\n", " ---\n"))
			}
			text.WriteString(pick(
				fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: %s\n", name),
				fmt.Sprintf("apiVersion: v1\r\nkind: ConfigMap\r\nmetadata: {name: %s}\r\n", name),
				fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {name: %s}}\n", name),
				fmt.Sprintf("{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":%q}}", name),
				fmt.Sprintf("{\n \"apiVersion\": \"v1\",\n \"kind\": \"ConfigMap\",\n \"metadata\": {\"name\": %q}\n}\n", name),
				fmt.Sprintf("apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: %s}}\n", name),
				fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata:\n  x: |\n    ---\n    ...\n    {}\n", name),
			))
		}
		data := []byte(text.String())
		switch random.IntN(6) {
		case 0:
			data = []byte(wide(text.String(), binary.LittleEndian))
		case 1:
			data = append([]byte("\uFEFF"), data...)
		}
		replay := fmt.Sprintf("seed %d, round %d: %q", seed, round, data)
		got, err := parse(data)
		if err != nil {
			continue
		}
		whole++
		require.Equal(t, want, idents(got), replay)
		if names, err := kubectlNames(data); err == nil {
			require.Subset(t, want, names, replay)
		}
	}
	require.Greater(t, whole, 300, "most texts were refused, which proves little")
}
