// Command bench measures mote and, in the same run and on the same disk, the stock parts that it is
// made of: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy and
// containerd as processes of their own. It prints a table and can write docs/benchmarks.md. The word datastore
// makes it compare mote's store with etcd and kine instead (store*.go), the word addons measure the addons (addon*.go).
//
// It owns how things are measured: fresh namespaces for each cluster (namespace.go, cgroup.go), the
// steps of a trial (trial.go, api.go), what processes use (process.go) and the report. scripts/bench builds the
// programs and runs it. Every file it makes is below --dir and gone when it ends.
//
// A trial is one cluster from an empty folder to its end. Trials of mote and of the stock parts
// alternate, so that a slow minute of the machine hits both.
package main
