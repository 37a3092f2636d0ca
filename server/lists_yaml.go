package server

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// serveYAML lets next answer r as JSON and converts the answer to YAML, one object at a time.
// Upstream converts a whole list at once, which takes 80 times its stored size for objects of many
// small fields (TestListCosts). accept is the media type to request from next.
func serveYAML(w http.ResponseWriter, r *http.Request, accept string, next http.Handler) {
	asked := r.Clone(r.Context())
	asked.Header.Set("Accept", accept)
	asked.Header.Del("Accept-Encoding") // a compressed answer could not be converted
	y := &yamlResponse{ResponseWriter: w}
	defer func() {
		// A handler that panics has not written all of its answer. The client must not take the
		// partial answer for a whole one.
		y.end(io.ErrUnexpectedEOF)
	}()
	next.ServeHTTP(y, asked)
	if err := y.end(nil); err != nil {
		panic(http.ErrAbortHandler) // the answer has begun: only a broken connection shows the client that it is incomplete
	}
}

// yamlResponse converts the JSON that a handler writes. The handler writes into a pipe. A goroutine
// reads from the pipe; end waits for that goroutine.
type yamlResponse struct {
	http.ResponseWriter
	begun bool
	pipe  *io.PipeWriter // nil unless a conversion runs
	done  chan error
}

// WriteHeader implements http.ResponseWriter. It passes an answer that is not JSON, such as a plain
// error, unchanged.
func (y *yamlResponse) WriteHeader(code int) {
	y.begun = true
	if kind, _, err := mime.ParseMediaType(y.Header().Get("Content-Type")); err == nil && kind == runtime.ContentTypeJSON {
		y.Header().Set("Content-Type", runtime.ContentTypeYAML)
		y.Header().Del("Content-Length")
		var from *io.PipeReader
		from, y.pipe = io.Pipe()
		y.done = make(chan error, 1)
		go func() {
			err := convertToYAML(y.ResponseWriter, from)
			from.CloseWithError(err) // makes the handler's next write fail
			y.done <- err
		}()
	}
	y.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (y *yamlResponse) Write(data []byte) (int, error) {
	if !y.begun {
		y.WriteHeader(http.StatusOK)
	}
	if y.pipe == nil {
		return y.ResponseWriter.Write(data)
	}
	return y.pipe.Write(data)
}

// end ends the answer and waits for the conversion. why is the reason if the handler has not
// written all of it, or else nil. Only the first call counts.
func (y *yamlResponse) end(why error) error {
	if y.pipe == nil {
		return nil
	}
	y.pipe.CloseWithError(why)
	y.pipe = nil
	return <-y.done
}

// convertToYAML writes the JSON object of r as YAML in the format of sigs.k8s.io/yaml, fields by
// name. It converts the arrays "items" of a list and "rows" of a table element by element; all
// other fields must be small.
func convertToYAML(w io.Writer, r io.Reader) error {
	out, in := bufio.NewWriterSize(w, 64<<10), json.NewDecoder(r)
	if token, err := in.Token(); err != nil || token != json.Delim('{') {
		return fmt.Errorf("convert to YAML: %v instead of an object (%w)", token, err)
	}
	fields := map[string]json.RawMessage{}
	for in.More() {
		token, err := in.Token()
		if err != nil {
			return fmt.Errorf("convert to YAML: %w", err)
		}
		name, _ := token.(string)
		if name == "items" || name == "rows" {
			if err := writeFields(out, fields, name); err != nil {
				return err
			}
			if err := convertArray(out, in, name); err != nil {
				return fmt.Errorf("convert %s to YAML: %w", name, err)
			}
			continue
		}
		var value json.RawMessage
		if err := in.Decode(&value); err != nil {
			return fmt.Errorf("convert %s to YAML: %w", name, err)
		}
		fields[name] = value
	}
	if _, err := in.Token(); err != nil {
		return fmt.Errorf("convert to YAML: %w", err)
	}
	if err := writeFields(out, fields, ""); err != nil {
		return err
	}
	return out.Flush()
}

// writeFields writes and then deletes the fields whose names come before the given one; all fields
// for "".
func writeFields(out *bufio.Writer, fields map[string]json.RawMessage, before string) error {
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if before != "" && name > before {
			return nil
		}
		field, err := json.Marshal(map[string]json.RawMessage{name: fields[name]})
		if err != nil {
			return fmt.Errorf("convert %s to YAML: %w", name, err)
		}
		data, err := yaml.JSONToYAML(field)
		if err != nil {
			return fmt.Errorf("convert %s to YAML: %w", name, err)
		}
		if _, err := out.Write(data); err != nil {
			return err
		}
		delete(fields, name)
	}
	return nil
}

// convertArray writes a field whose value, an array or null, is next in in.
func convertArray(out *bufio.Writer, in *json.Decoder, name string) error {
	switch token, err := in.Token(); {
	case err != nil:
		return err
	case token == nil:
		_, err := fmt.Fprintf(out, "%s: null\n", name)
		return err
	case token != json.Delim('['):
		return fmt.Errorf("%v instead of an array", token)
	}
	if !in.More() {
		fmt.Fprintf(out, "%s: []\n", name)
	} else {
		fmt.Fprintf(out, "%s:\n", name)
	}
	for in.More() {
		var element json.RawMessage
		if err := in.Decode(&element); err != nil {
			return err
		}
		// As an array of one element it gets the same indentation as in the whole list.
		data, err := yaml.JSONToYAML(slices.Concat([]byte("["), element, []byte("]")))
		if err != nil {
			return err
		}
		if _, err := out.Write(data); err != nil {
			return err
		}
	}
	_, err := in.Token()
	return err
}
