package bolt

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

// refuse answers without a write; err may be nil.
func (t *writeTx) refuse(err error) answer {
	return answer{Result: Result{Revision: t.revision}, refusal: err}
}

// write judges w against the key's latest version and does it if its guard holds.
func (t *writeTx) write(w Write) (answer, error) {
	if w.Key == "" || len(w.Key) > maxKeySize {
		return t.refuse(ErrInvalidKey), nil
	}
	last, err := t.latest(w.Key)
	if err != nil {
		return answer{}, err
	}
	var prev *KV
	if last != nil && !last.deleted {
		prev = last.kv(false)
	}
	ok := w.Guard.holds(prev)
	switch {
	case !ok, w.Delete && prev == nil:
		return answer{Result: Result{Revision: t.revision, OK: ok, Prev: prev}}, nil
	case !w.Delete && w.Lease != 0 && t.lease(w.Lease) == nil:
		return t.refuse(ErrLeaseNotFound), nil
	}
	rec := record{key: []byte(w.Key)}
	if last != nil {
		rec.prev = last.mod
	}
	switch {
	case w.Delete:
		rec.deleted = true
	case prev == nil:
		rec.value, rec.lease = w.Value, w.Lease
		rec.create, rec.version = t.revision+1, 1
	default:
		rec.value, rec.lease = w.Value, w.Lease
		rec.create, rec.version = prev.Create, prev.Version+1
	}
	res := Result{OK: true, Prev: prev}
	if res.KV, err = t.append(rec, prev); err != nil {
		return answer{}, err
	}
	if res.Revision = t.revision; w.Delete {
		res.KV = nil
	}
	return answer{Result: res}, nil
}

// append gives rec the next revision and puts it into log and index. prev is for the event.
func (t *writeTx) append(rec record, prev *KV) (*KV, error) {
	rec.mod = t.revision + 1
	if err := t.log.Put(revisionKey(rec.mod), encodeRecord(rec)); err != nil {
		return nil, err
	}
	if err := t.keys.Put(rec.key, encodeHeader(rec.header)); err != nil {
		return nil, err
	}
	t.revision = rec.mod
	t.dirty = true
	t.bytes += len(rec.value)
	kv := newKV(string(rec.key), rec.header)
	kv.Value = rec.value
	t.events = append(t.events, Event{Deleted: rec.deleted, KV: kv, Prev: prev})
	return kv, nil
}
