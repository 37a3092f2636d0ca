package storetest

import (
	"math"
	"testing"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"
)

// TestHistoryIsJudged checks that Check fails on wrong histories: a check that cannot fail proves
// nothing.
func TestHistoryIsJudged(t *testing.T) {
	create, create2 := call{key: "a", value: "1"}, call{key: "a", value: "2"}
	update, remove, get := call{key: "a", value: "2", guard: 5}, call{key: "a", remove: true, guard: 5}, call{key: "a", get: true}
	created := reply{done: true, revision: 5}
	found := func(value string, mod, revision int64) reply {
		return reply{revision: revision, found: keyState{value: value, mod: mod}}
	}
	unknown := reply{unknown: true}
	type operation struct {
		call  call
		reply reply
	}
	for name, test := range map[string]struct {
		sequence []operation
		want     porcupine.CheckResult
	}{
		"what was written is read":   {[]operation{{create, created}, {get, found("1", 5, 5)}}, porcupine.Ok},
		"lost write":                 {[]operation{{create, created}, {get, found("", 0, 5)}}, porcupine.Illegal},
		"stale read":                 {[]operation{{create, created}, {update, reply{done: true, revision: 6}}, {get, found("1", 5, 6)}}, porcupine.Illegal},
		"two creations":              {[]operation{{create, created}, {create2, reply{done: true, revision: 6}}}, porcupine.Illegal},
		"revision twice":             {[]operation{{create, created}, {update, created}}, porcupine.Illegal},
		"revision goes back":         {[]operation{{create, created}, {get, found("1", 5, 4)}}, porcupine.Illegal},
		"refused for no reason":      {[]operation{{create, created}, {remove, found("1", 5, 5)}}, porcupine.Illegal},
		"removed, still there":       {[]operation{{create, created}, {remove, reply{done: true, revision: 6}}, {get, found("1", 5, 6)}}, porcupine.Illegal},
		"in doubt, not done":         {[]operation{{create, unknown}, {get, found("", 0, 1)}}, porcupine.Ok},
		"in doubt, done":             {[]operation{{create, unknown}, {get, found("1", 5, 7)}, {update, reply{done: true, revision: 8}}}, porcupine.Ok},
		"in doubt, done and undone":  {[]operation{{create, unknown}, {get, found("1", 5, 7)}, {get, found("", 0, 7)}}, porcupine.Illegal},
		"in doubt, removed":          {[]operation{{create, created}, {remove, unknown}, {get, found("", 0, 7)}}, porcupine.Ok},
		"a value that nobody wrote":  {[]operation{{create, created}, {get, found("9", 5, 5)}}, porcupine.Illegal},
		"nothing is there to remove": {[]operation{{call{key: "a", remove: true}, reply{done: true, revision: 1}}}, porcupine.Ok},
	} {
		t.Run(name, func(t *testing.T) {
			var history []porcupine.Operation
			for i, o := range test.sequence {
				at := int64(2 * i)
				one := porcupine.Operation{Input: o.call, Output: o.reply, Call: at, Return: at + 1}
				if o.reply.unknown {
					one.Return = math.MaxInt64
				}
				history = append(history, one)
			}
			require.Equal(t, test.want, linearizable(history))
		})
	}
}
