package machine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// The guest runs the test's own program under this name.
const writerName = "writer"

const (
	writers, keysOfWriter = 8, 8
	// valueSize in bytes is that of a small Pod.
	valueSize = 2000
	storeURL  = "unix:///run/store.sock"
)

// runWriter is the guest's program: "writer write FROM" changes keys until it dies and prints each
// acknowledged change as a line "+ WRITER NUMBER KEY REVISION"; "writer dump" prints each key as "=
// KEY REVISION VALUE", then the store's revision as "! REVISION".
func runWriter(args []string) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{storeURL}, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer client.Close()
	switch {
	case len(args) == 1 && args[0] == "dump":
		return dump(client)
	case len(args) == 2 && args[0] == "write":
		from, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return write(client, from)
	}
	return fmt.Errorf("writer dump, or writer write FROM; not %q", args)
}

func write(client *clientv3.Client, from int) error {
	var group sync.WaitGroup
	ended := make(chan error, writers)
	for writer := range writers {
		group.Go(func() { ended <- writeKeys(client, writer, from) })
	}
	group.Wait()
	return errors.Join(<-ended)
}

func writeKeys(client *clientv3.Client, writer, from int) error {
	guards := map[string]int64{} // the revision of the last change of each key; 0 if it does not exist
	resp, err := client.Get(context.Background(), keyOf(writer, 0)[:len(keyOf(writer, 0))-1], clientv3.WithPrefix())
	if err != nil {
		return err
	}
	for _, kv := range resp.Kvs {
		guards[string(kv.Key)] = kv.ModRevision
	}
	for n := from; ; n++ {
		key := keyOf(writer, n)
		op := clientv3.OpPut(key, valueOf(writer, n))
		if removes(n) {
			op = clientv3.OpDelete(key)
		}
		resp, err := client.Txn(context.Background()).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", guards[key])).Then(op).Commit()
		if err != nil {
			return fmt.Errorf("change %d of writer %d: %w", n, writer, err)
		}
		if !resp.Succeeded {
			return fmt.Errorf("change %d of writer %d: %s is not at revision %d", n, writer, key, guards[key])
		}
		guards[key] = resp.Header.Revision
		if removes(n) {
			guards[key] = 0
		}
		fmt.Printf("+ %d %d %s %d\n", writer, n, key, resp.Header.Revision)
	}
}

func dump(client *clientv3.Client) error {
	resp, err := client.Get(context.Background(), "/cut/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	for _, kv := range resp.Kvs {
		value := strings.TrimRight(string(kv.Value), ".")
		if len(kv.Value) != valueSize {
			value = fmt.Sprintf("%d-bytes", len(kv.Value))
		}
		fmt.Printf("= %s %d %s\n", kv.Key, kv.ModRevision, value)
	}
	fmt.Printf("! %d\n", resp.Header.Revision)
	return nil
}

func keyOf(writer, n int) string { return fmt.Sprintf("/cut/%d/%d", writer, n%keysOfWriter) }

// removes reports whether a writer's change removes its key. Every second change of the seventh key
// does.
func removes(n int) bool { return n%keysOfWriter == keysOfWriter-1 && n/keysOfWriter%2 == 1 }

func valueOf(writer, n int) string {
	name := fmt.Sprintf("%d/%d", writer, n)
	return name + strings.Repeat(".", valueSize-len(name))
}
