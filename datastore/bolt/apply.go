package bolt

import "time"

// latest returns the last record of key, a deletion included, or nil.
func (t *writeTx) latest(key string) (*record, error) {
	row := t.keys.Get([]byte(key))
	if row == nil {
		return nil, nil
	}
	h, err := decodeHeader([]byte(key), row)
	if err != nil {
		return nil, err
	}
	rec, err := decodeRecord(h.mod, t.log.Get(revisionKey(h.mod)))
	return &rec, err
}

func (t *writeTx) refuse(err error) result {
	return result{revision: t.revision, refusal: err}
}

func (t *writeTx) create(key string, value []byte, lease int64) (result, error) {
	if key == "" || len(key) > maxKeySize {
		return t.refuse(ErrInvalidKey), nil
	}
	last, err := t.latest(key)
	if err != nil {
		return result{}, err
	}
	if last != nil && !last.deleted {
		return t.refuse(ErrExists), nil
	}
	revision := t.revision + 1
	rec := record{header: header{create: revision, version: 1, lease: lease}, value: value}
	if last != nil {
		rec.prev = last.mod
	}
	return t.append(key, rec, nil)
}

func (t *writeTx) update(key string, value []byte, guard, lease int64) (result, error) {
	last, err := t.latest(key)
	switch {
	case err != nil:
		return result{}, err
	case last == nil || last.deleted:
		return result{revision: t.revision}, nil
	case last.mod != guard:
		return result{revision: t.revision, kv: last.kv(false)}, nil
	}
	rec := record{
		header: header{create: last.create, version: last.version + 1, lease: lease},
		prev:   last.mod, value: value,
	}
	return t.append(key, rec, last.kv(false))
}

func (t *writeTx) remove(key string, guard int64) (result, error) {
	last, err := t.latest(key)
	switch {
	case err != nil:
		return result{}, err
	case last == nil || last.deleted:
		return result{revision: t.revision}, nil
	case guard != 0 && last.mod != guard:
		return result{revision: t.revision, kv: last.kv(false)}, nil
	}
	prev := last.kv(false)
	res, err := t.append(key, record{header: header{deleted: true}, prev: last.mod}, prev)
	res.kv = prev
	return res, err
}

// append gives rec the next revision and puts it into log and index. prev is for the event.
func (t *writeTx) append(key string, rec record, prev *KV) (result, error) {
	rec.key = []byte(key)
	rec.mod = t.revision + 1
	if rec.lease > 0 {
		rec.expires = t.now.Add(time.Duration(rec.lease) * time.Second).Unix()
	}
	if err := t.log.Put(revisionKey(rec.mod), encodeRecord(rec)); err != nil {
		return result{}, err
	}
	if err := t.keys.Put(rec.key, encodeHeader(rec.header)); err != nil {
		return result{}, err
	}
	t.revision = rec.mod
	t.dirty = true
	t.bytes += len(rec.value)
	kv := newKV(key, rec.header)
	kv.Value = rec.value
	t.events = append(t.events, Event{Deleted: rec.deleted, KV: kv, Prev: prev})
	return result{revision: rec.mod, kv: kv, ok: true}, nil
}
