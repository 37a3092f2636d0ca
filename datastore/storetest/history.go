package storetest

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// History records requests of clients to a store and their answers. Afterwards it checks whether
// one store that executes one request after the other can have given these answers.
type History struct {
	began time.Time
	keys  int

	mu         sync.Mutex // guards the fields below
	operations []porcupine.Operation
	serial     int
}

// NewHistory returns a History for clients that share the given number of keys.
func NewHistory(keys int) *History { return &History{began: time.Now(), keys: keys} }

// call is a request: to get key, to write value, or to remove the key. A write or removal requires
// that the key was last written at guard.
type call struct {
	key         string
	get, remove bool
	value       string
	guard       int64
}

// reply is an answer. Without an answer it is unknown whether anything happened.
type reply struct {
	unknown bool
	// done means that the guard held and the change was made; otherwise found has the content of
	// the key.
	done bool
	// revision is the revision in the answer.
	revision int64
	found    keyState
}

// keyState is the content of a key; no value means that the key does not exist.
type keyState struct {
	value string
	// mod is the revision of the key's last write, or unnoticed if no client received it.
	mod int64
	// last is the highest revision of any change of the key that a client has received.
	last int64
}

const unnoticed = -1

// Client sends random requests until ctx ends, the store is gone or it has sent n requests. A
// request that is then without an answer may be executed at any time until Settle is called, or
// never.
func (h *History) Client(ctx context.Context, client *clientv3.Client, id, n int, rng *rand.Rand) {
	seen := map[string]keyState{} // per key: the content that this client received last
	for range n {
		c := h.next(rng, seen)
		called := h.now()
		r, err := c.do(ctx, client)
		returned := h.now()
		if err != nil {
			r, returned = reply{unknown: true}, math.MaxInt64
		}
		h.mu.Lock()
		h.operations = append(h.operations, porcupine.Operation{ClientId: id, Input: c, Output: r, Call: called, Return: returned})
		h.mu.Unlock()
		switch {
		case err != nil:
			return
		case r.done && c.remove:
			seen[c.key] = keyState{}
		case r.done:
			seen[c.key] = keyState{value: c.value, mod: r.revision}
		default:
			seen[c.key] = r.found
		}
	}
}

// Settle records that the clients have ended and that the store is dead: it will execute no open
// request any more.
func (h *History) Settle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.operations {
		h.operations[i].Return = min(h.operations[i].Return, h.now())
	}
}

func (h *History) now() int64 { return int64(time.Since(h.began)) }

// next chooses a request. Values are unique, so that each value identifies its write.
func (h *History) next(rng *rand.Rand, seen map[string]keyState) call {
	h.mu.Lock()
	h.serial++
	c := call{key: fmt.Sprintf("/history/%d", rng.IntN(h.keys)), value: fmt.Sprint(h.serial)}
	h.mu.Unlock()
	c.guard = seen[c.key].mod
	switch choice := rng.IntN(10); {
	case choice < 3:
		c.get = true
	case choice < 5 && c.guard != 0: // Kubernetes removes only a version that it has seen
		c.remove = true
	}
	return c
}

// do sends the request in the apiserver's form.
func (c call) do(ctx context.Context, client *clientv3.Client) (reply, error) {
	if c.get {
		resp, err := client.Get(ctx, c.key)
		if err != nil {
			return reply{}, err
		}
		return reply{revision: resp.Header.Revision, found: stateOf(resp)}, nil
	}
	op := clientv3.OpPut(c.key, c.value)
	if c.remove {
		op = clientv3.OpDelete(c.key)
	}
	resp, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(c.key), "=", c.guard)).
		Then(op).Else(clientv3.OpGet(c.key)).Commit()
	if err != nil {
		return reply{}, err
	}
	r := reply{done: resp.Succeeded, revision: resp.Header.Revision}
	if !r.done {
		r.found = stateOf((*clientv3.GetResponse)(resp.Responses[0].GetResponseRange()))
	}
	return r, nil
}

func stateOf(resp *clientv3.GetResponse) keyState {
	if len(resp.Kvs) == 0 {
		return keyState{}
	}
	return keyState{value: string(resp.Kvs[0].Value), mod: resp.Kvs[0].ModRevision}
}

// checkTimeout limits the search for an order. Few keys with many clients at once take long.
const checkTimeout = 2 * time.Minute

// Check fails the test unless a store that executes one request after the other can have produced
// the history.
func (h *History) Check(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	require.Equal(t, porcupine.Ok, linearizable(h.operations), "no order of these explains them: %+v", h.operations)
	h.checkRevisions(t)
}

// CheckChanges fails the test unless the changes that were made are consistent: reads and refused
// requests may have received old data.
func (h *History) CheckChanges(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	made := slices.DeleteFunc(slices.Clone(h.operations), func(o porcupine.Operation) bool {
		r := o.Output.(reply)
		return !r.done && !r.unknown
	})
	require.Equal(t, porcupine.Ok, linearizable(made), "no order of these explains them: %+v", made)
}

func linearizable(history []porcupine.Operation) porcupine.CheckResult {
	model := porcupine.NondeterministicModel{Partition: byKey, Init: func() []any { return []any{keyState{}} }, Step: step}
	return porcupine.CheckOperationsTimeout(model.ToModel(), history, checkTimeout)
}

// checkRevisions checks over all keys that a request sent after an answer never receives a lower
// revision than that answer.
func (h *History) checkRevisions(t testing.TB) {
	t.Helper()
	known := slices.DeleteFunc(slices.Clone(h.operations), func(o porcupine.Operation) bool { return o.Output.(reply).unknown })
	byCall, byReturn := known, slices.Clone(known)
	slices.SortFunc(byCall, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	slices.SortFunc(byReturn, func(a, b porcupine.Operation) int { return int(a.Return - b.Return) })
	told := int64(0)
	for _, o := range byCall {
		for len(byReturn) > 0 && byReturn[0].Return < o.Call {
			told = max(told, byReturn[0].Output.(reply).revision)
			byReturn = byReturn[1:]
		}
		require.GreaterOrEqual(t, o.Output.(reply).revision, told, "revisions went back: %+v -> %+v", o.Input, o.Output)
	}
}

func byKey(history []porcupine.Operation) [][]porcupine.Operation {
	keys := map[string][]porcupine.Operation{}
	for _, o := range history {
		key := o.Input.(call).key
		keys[key] = append(keys[key], o)
	}
	var parts [][]porcupine.Operation
	for _, part := range keys {
		parts = append(parts, part)
	}
	return parts
}

// step returns the possible contents of a key after a request with this answer. It returns nothing
// if the answer is impossible.
func step(state, input, output any) []any {
	s, c, r := state.(keyState), input.(call), output.(reply)
	after := keyState{value: c.value, mod: r.revision, last: r.revision}
	if c.remove {
		after.value, after.mod = "", 0
	}
	switch {
	case r.unknown && (c.get || !s.may(c.guard)):
		return []any{s}
	case r.unknown && c.remove:
		return []any{s, keyState{last: s.last}}
	case r.unknown:
		return []any{s, keyState{value: c.value, mod: unnoticed, last: s.last}}
	case r.revision < s.last:
		return nil
	case r.done && c.remove && c.guard == 0 && s.value == "":
		return []any{s} // the key did not exist, and nothing was removed
	case r.done && s.may(c.guard) && r.revision > s.last:
		return []any{after}
	case r.done:
		return nil
	case !c.get && s.value != "" && s.mod != unnoticed && s.mod == c.guard, !c.get && s.value == "" && c.guard == 0:
		return nil // the store had to execute it
	case r.found.value != s.value, s.mod != unnoticed && r.found.mod != s.mod:
		return nil
	}
	return []any{keyState{value: s.value, mod: r.found.mod, last: max(s.last, r.found.mod)}}
}

// may reports whether the key may have last been written at the revision guard.
func (s keyState) may(guard int64) bool {
	return s.mod == guard || s.mod == unnoticed && guard > s.last
}
