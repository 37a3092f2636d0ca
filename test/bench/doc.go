// Command bench measures mote and, in the same run and on the same disk, the stock components that
// it consists of: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet,
// kube-proxy and containerd as separate processes. It prints a table and can write
// docs/benchmarks.md. With the argument datastore it compares mote's store with etcd and kine
// instead (store*.go), with the argument addons it measures the addons (addon*.go).
//
// It owns the method of measurement: fresh namespaces for each cluster (namespace.go, cgroup.go),
// the steps of a trial (trial.go, api.go), the resource usage of processes (process.go) and the
// report. scripts/bench builds the programs and runs it. Every file that it creates is below --dir
// and removed when it ends.
//
// A trial is one cluster from an empty directory to its end. Trials of mote and of the stock
// components alternate, so that a slow minute of the machine affects both.
package main
