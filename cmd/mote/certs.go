package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/machine"
	"github.com/mote-k8s/mote/server/pki"
)

// newCertsCommand returns the verbs for certificates and keys.
func newCertsCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "Look at certificates, renew them, change the authorities",
		Long: `Look after the certificates and keys of this machine's cluster, while mote runs or not. A running mote renews
certificates by itself when a third of their year is left, and any start renews what has expired meanwhile: nothing
here has to be done regularly.`,
		GroupID: groupManage,
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(newCertsCheckCommand(e), newCertsRotateCommand(e), newCertsRotateCACommand(e), newCertsInitCommand(e))
	return cmd
}

func newCertsCheckCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "List certificates, authorities, kubeconfigs and keys, and what is wrong with them",
		Long: `List every certificate and authority, every kubeconfig by the client certificate in it, and the key of
service-account tokens: whose, until when, and what is wrong with it. It reads files alone and changes none. The exit
code is 1 when anything has expired or is broken; a start of mote makes again whatever can be made again.`,
		Args: noArgs,
	}
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "certs check")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		if err := machine.RequireRoot(verb(cmd)); err != nil {
			return err
		}
		certs := m.Certificates()
		found, err := certs.Check(time.Now())
		if err != nil {
			return err
		}
		waiting, err := certs.Waiting()
		if err != nil {
			return err
		}
		if output.json() {
			err = printJSON(e.stdout, struct {
				Certificates []pki.Certificate `json:"certificates"`
				// RestartPending is true when authorities were changed and the change takes effect
				// at the next start of mote.
				RestartPending bool `json:"restartPending"`
			}{found, waiting})
		} else {
			err = printCertificates(e.stdout, found)
		}
		if err != nil {
			return err
		}
		if waiting && !output.json() {
			fmt.Fprintln(e.stderr, "A change of authorities waits for the next start of mote.")
		}
		return certsOutcome(found, output.json())
	}
	return cmd
}

func printCertificates(w io.Writer, found []pki.Certificate) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "NAME\tISSUER\tEXPIRES\tDAYS LEFT\tSTATE\tFILE")
	for _, c := range found {
		expires, left, state := "never", "", "ok"
		if c.Expires != nil {
			expires = c.Expires.Format(time.DateOnly)
		}
		switch {
		case c.DaysLeft != nil:
			left = fmt.Sprint(*c.DaysLeft)
		case c.Made != nil:
			expires = "made " + c.Made.Format(time.DateOnly)
		case c.Kind != pki.KindKey && c.Subject == "":
			expires = ""
		}
		if len(c.Problems) > 0 {
			state = oneLine(errors.New(strings.Join(c.Problems, "; ")))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Name, c.Issuer, expires, left, state, c.File)
	}
	return t.Flush()
}

func certsOutcome(found []pki.Certificate, quiet bool) error {
	var bad []string
	for _, c := range found {
		if len(c.Problems) > 0 {
			bad = append(bad, c.Name)
		}
	}
	switch {
	case len(bad) == 0:
		return nil
	case quiet:
		return &exitError{code: 1}
	}
	return fmt.Errorf("not in order: %s; a start of mote makes again what can be made again and names the rest", strings.Join(bad, ", "))
}

func newCertsRotateCommand(e *env) *cobra.Command {
	var newKeys bool
	cmd := &cobra.Command{
		Use:   "rotate [NAME...]",
		Short: "Renew certificates now",
		Long: `Renew certificates now, all or those named (names: "mote certs check"), for another year and with the names and
addresses that they have. Either all of them are renewed or none. A running mote takes them without a restart, its servers
at once and its clients within five minutes; no container is touched. The administrator's goes into his kubeconfig too.

The old certificates stay valid until they expire, and so do kubeconfigs that were copied elsewhere: nothing revokes a
certificate in Kubernetes. If a key has leaked, change the authorities: "mote certs rotate-ca".`,
		Example: `  mote certs rotate
  mote certs rotate admin --new-keys`,
	}
	cmd.Flags().BoolVar(&newKeys, "new-keys", false, "make new private keys too")
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "certs rotate")
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		if err := machine.RequireRoot(verb(cmd)); err != nil {
			return err
		}
		renewed, err := m.Certificates().Rotate(names, newKeys, time.Now())
		if err != nil {
			return machine.DiskHint(err)
		}
		return tellNames(e, "renewed", renewed, output.json(), "")
	}
	return cmd
}

func newCertsInitCommand(e *env) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make new keys for a cluster that has lost all of them",
		Long: `Make new authorities and a new service-account key where a cluster has lost all of them and no snapshot or backup has them.
The state in the datastore stays. Whatever trusted the old keys must be given the new ones: kubeconfigs that were copied
elsewhere, other nodes, webhooks. Pods get new tokens when they are started again. mote must be stopped.`,
		Args: noArgs,
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	load := withSettings(cmd, e, "certs init")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		if err := machine.RequireRoot(verb(cmd)); err != nil {
			return err
		}
		lock, err := m.LockStopped()
		if err != nil {
			return err
		}
		defer lock.Close()
		if !yes {
			if err := confirm(e, "Make new keys for the cluster in "+m.DataDir+"? Nothing that has the old ones is trusted any more."); err != nil {
				return err
			}
		}
		if err := m.Certificates().Init(); err != nil {
			return machine.DiskHint(err)
		}
		fmt.Fprintln(e.stderr, "New keys are made. Next: mote server")
		return nil
	}
	return cmd
}

// tellNames prints the action, the names that it changed, and the next step.
func tellNames(e *env, what string, names []string, asJSON bool, next string) error {
	if asJSON {
		return printJSON(e.stdout, map[string][]string{what: names})
	}
	for _, name := range names {
		if _, err := fmt.Fprintln(e.stdout, name); err != nil {
			return err
		}
	}
	if next != "" {
		fmt.Fprintln(e.stderr, next)
	}
	return nil
}

func newCertsRotateCACommand(e *env) *cobra.Command {
	var from string
	var finish bool
	cmd := &cobra.Command{
		Use:   "rotate-ca",
		Short: "Replace the certificate authorities and the key of service-account tokens",
		Long: `Replace the authorities and the key of service-account tokens, in two steps. Each takes effect when mote is started
again; containers go on over a restart. The key that encrypts Secrets in the datastore is never touched.

  1. mote certs rotate-ca            new authorities; the old ones stay trusted
     restart mote                    all its certificates and kubeconfigs are made anew
     Give copied kubeconfigs, and certificates that were signed through CertificateSigningRequests, to their holders
     again. Restart pods whose programs read the cluster's authority or their token only when they start, and make
     tokens in Secrets of type kubernetes.io/service-account-token again (delete and create the Secret). Wait an hour:
     by then the kubelet has renewed all tokens in pods. Save a snapshot: earlier ones bring the old authorities back.
     Delete those: they hold the old authorities' keys, and nothing else deletes them.
  2. mote certs rotate-ca --finish   the old authorities and tokens count for nothing any more
     restart mote

Between the steps everybody who knew the cluster still does: old client certificates and tokens are accepted, and the
servers' new certificates can be verified by old and new authorities. After the second a kubeconfig or token from before the
first is refused. Interrupted at any moment, either step has happened whole or not at all.

With --from, authorities of your own are taken: server-ca.crt and .key, client-ca.crt and .key, front-proxy-ca.crt and
.key, service-account.key, those of them that are there. Each is checked: an authority, self-signed, a key that fits, a
year or more to go.`,
		Example: `  mote certs rotate-ca && systemctl restart mote
  mote certs rotate-ca --finish && systemctl restart mote`,
		Args: noArgs,
	}
	cmd.Flags().StringVar(&from, "from", "", "folder of your own authorities (default: new ones are made)")
	cmd.Flags().BoolVar(&finish, "finish", false, "trust the authorities before the present ones no longer")
	cmd.MarkFlagsMutuallyExclusive("from", "finish")
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "certs rotate-ca")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		if err := machine.RequireRoot(verb(cmd)); err != nil {
			return err
		}
		if finish {
			names, err := m.Certificates().FinishAuthorities()
			if err != nil {
				return machine.DiskHint(err)
			}
			return tellNames(e, "retired", names, output.json(), nextStart(m)+"From then on the old ones are refused.")
		}
		names, err := m.Certificates().RotateAuthorities(from, time.Now())
		if err != nil {
			return machine.DiskHint(err)
		}
		return tellNames(e, "replaced", names, output.json(), nextStart(m)+
			"Then renew what was copied elsewhere (\"mote certs rotate-ca --help\"), and end with: mote certs rotate-ca --finish")
	}
	return cmd
}

// nextStart explains when a change of authorities takes effect.
func nextStart(m *machine.Machine) string {
	if pid, err := m.Holder(); err == nil && pid != 0 {
		return fmt.Sprintf("Next: restart mote (pid %d), which takes them; containers go on. ", pid)
	}
	return "Next: mote server, which takes them. "
}
