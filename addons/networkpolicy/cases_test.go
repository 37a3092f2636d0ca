package networkpolicy

type packetCase struct {
	name     string
	policies []string
	expect   string
}

// packetCases returns rules of every kind, from both sides. Pod "fresh" is on the network and not
// yet in any API object.
func packetCases() []packetCase {
	return []packetCase{
		{"no policy", nil, `
			client web tcp 80 yes
			fresh web tcp 80 yes
			outside web tcp 80 yes
			web outside tcp 80 yes
			client 10.43.0.20 tcp 80 yes
			web 10.43.0.20 tcp 80 yes
			client 10.43.0.10 udp 53 yes
			node web tcp 80 yes`},
		{"default deny", []string{denyAll}, `
			client web tcp 80 no
			client web udp 5353 no
			client web sctp 5000 no
			client other tcp 80 no
			other web tcp 80 no
			outside web tcp 80 no
			client outside tcp 80 no
			client node tcp 80 no
			client 10.43.0.10 udp 53 no
			client 10.43.0.20 tcp 80 no
			other outside tcp 80 yes
			other node tcp 80 yes
			outside other tcp 80 yes
			node web tcp 80 yes
			node client udp 5353 yes
			ingress web tcp 80 no
			ingress other tcp 80 yes
			web 10.43.0.20 tcp 80 yes`},
		{"deny ingress to one", []string{denyWeb}, `
			client web tcp 80 no
			outside 192.0.2.1 tcp 30080 no
			client 10.43.0.20 tcp 80 no
			client db tcp 80 yes
			web client tcp 80 yes
			web outside udp 5353 yes
			web 10.43.0.10 udp 53 yes`},
		{"deny egress of one", []string{denyOut}, `
			client web tcp 80 no
			client outside tcp 80 no
			web client tcp 80 yes
			outside client tcp 80 yes
			db web tcp 80 yes`},
		{"unknown pods", []string{denyWeb}, `
			fresh db tcp 80 no
			fresh outside tcp 80 no
			fresh node tcp 80 no
			db fresh tcp 80 no
			outside fresh tcp 80 no
			ingress fresh tcp 80 no
			node fresh tcp 80 yes`},
		{"pod selector", []string{in(`{from: [{podSelector: {matchLabels: {app: client}}}]}`)}, `
			client web tcp 80 yes
			client web udp 5353 yes
			client web sctp 5000 yes
			client 10.43.0.20 tcp 80 yes
			db web tcp 80 no
			other web tcp 80 no
			outside web tcp 80 no
			ingress web tcp 80 no
			node web tcp 80 yes`},
		{"expressions", []string{in(`{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [db, x]}]}}]}`)}, `
			db web tcp 80 yes
			client web tcp 80 no`},
		{"namespace selector", []string{in(`{from: [{namespaceSelector: {matchLabels: {team: blue}}}]}`)}, `
			other web tcp 80 yes
			client web tcp 80 no
			outside web tcp 80 no`},
		{"both selectors", []string{in(`{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}]}`)}, `
			db web tcp 80 yes
			client web tcp 80 no
			other web tcp 80 no`},
		{"either selector", []string{in(`{from: [{namespaceSelector: {matchLabels: {team: blue}}}, {podSelector: {matchLabels: {app: db}}}]}`)}, `
			db web tcp 80 yes
			other web tcp 80 yes
			client web tcp 80 no`},
		{"all pods", []string{in(`{from: [{namespaceSelector: {}}]}`)}, `
			other web tcp 80 yes
			client web tcp 80 yes
			outside web tcp 80 no
			ingress web tcp 80 yes`},
		{"everybody", []string{in(`{}`)}, `
			other web tcp 80 yes
			outside web tcp 80 yes
			outside 192.0.2.1 tcp 30080 yes
			ingress web tcp 80 yes`},
		{"block", []string{in(`{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}`)}, `
			outside web tcp 80 yes
			outside 192.0.2.1 tcp 30080 yes
			client web tcp 80 no
			ingress web tcp 80 no`},
		{"except", []string{in(`{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [192.0.2.0/30, 10.42.0.13/32]}}]}`)}, `
			outside web tcp 80 no
			client web tcp 80 no
			db web tcp 80 yes`},
		{"except and another block", []string{in(`{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [192.0.2.0/24]}}, {ipBlock: {cidr: 192.0.2.2/32}}]}`)}, `
			outside web tcp 80 yes`},
		{"ports", []string{in(`{ports: [{port: 80}, {protocol: UDP, port: 5353}, {protocol: SCTP, port: 5000}]}`)}, `
			client web tcp 80 yes
			client web tcp 81 no
			client web tcp 5353 no
			client web udp 5353 yes
			client web udp 80 no
			client web sctp 5000 yes
			client web sctp 5001 no
			outside web tcp 80 yes`},
		{"end port", []string{in(`{ports: [{port: 80, endPort: 443}, {port: 400, endPort: 500}]}`)}, `
			client web tcp 80 yes
			client web tcp 443 yes
			client web tcp 8080 no`},
		{"whole protocol", []string{in(`{ports: [{protocol: UDP}]}`)}, `
			client web udp 80 yes
			client web tcp 80 no`},
		{"named port in", []string{
			in(`{ports: [{port: http}]}`),
			`{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: http}]}]}`,
		}, `
			client web tcp 8080 yes
			client web tcp 81 no
			client db tcp 81 yes
			client db tcp 8080 no
			client 10.43.0.20 tcp 80 yes`},
		{"named port out", []string{out(`{to: [{podSelector: {}}], ports: [{port: http}]}`)}, `
			client web tcp 8080 yes
			client db tcp 81 yes
			client db tcp 8080 no
			client other tcp 8080 no`},
		{"peer and port", []string{in(`{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}`)}, `
			client web tcp 80 yes
			client web tcp 81 no
			db web tcp 80 no`},
		{"policies add up", []string{
			denyWeb, in(`{ports: [{port: 80}]}`), in(`{from: [{podSelector: {matchLabels: {app: db}}}]}`),
		}, `
			client web tcp 80 yes
			client web tcp 81 no
			db web tcp 81 yes`},
		{"egress to pods", []string{out(`{to: [{namespaceSelector: {matchLabels: {team: blue}}}]}`)}, `
			client other tcp 80 yes
			client web tcp 80 no
			client 10.43.0.20 tcp 80 no
			client outside tcp 80 no
			client node tcp 80 no`},
		{"egress to a Service's pods", []string{out(`{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}`)}, `
			client 10.43.0.20 tcp 80 yes
			client web tcp 80 no`},
		{"egress to a block", []string{out(`{to: [{ipBlock: {cidr: 192.0.2.0/24}}]}`)}, `
			client outside tcp 80 yes
			client web tcp 80 no`},
		{"egress to the node by its address", []string{out(`{to: [{ipBlock: {cidr: 10.42.0.1/32}}], ports: [{port: 80}]}`)}, `
			client node tcp 80 yes
			client node tcp 443 no
			client 10.43.0.10 udp 53 no`},
		{"both sides must agree", []string{
			out(`{to: [{podSelector: {matchLabels: {app: web}}}]}`), in(`{from: [{podSelector: {matchLabels: {app: db}}}]}`),
		}, `
			client web tcp 80 no
			db web tcp 80 yes
			client db tcp 80 no`},
		{"both sides agree", []string{
			denyAll, out(`{to: [{podSelector: {matchLabels: {app: web}}}]}`), in(`{from: [{podSelector: {}}]}`),
		}, `
			client web tcp 80 yes
			db web tcp 80 no
			client db tcp 80 no`},
		{"DNS as a pod of kube-system", []string{out(`{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}},
			podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{protocol: UDP, port: 53}]}`)}, `
			client 10.43.0.10 udp 53 yes
			client node udp 10053 yes
			client 10.43.0.10 tcp 53 no
			client node tcp 80 no
			client node tcp 9153 no
			client web tcp 80 no`},
		{"DNS by its port", []string{out(`{ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}`)}, `
			client 10.43.0.10 udp 53 yes
			client 10.43.0.10 tcp 53 yes
			client node tcp 80 no`},
		{"DNS by its port's name", []string{out(`{to: [{namespaceSelector: {}}], ports: [{port: dns-tcp}]}`)}, `
			client 10.43.0.10 tcp 53 yes
			client 10.43.0.10 udp 53 no`},
		{"DNS in a block", []string{out(`{to: [{ipBlock: {cidr: 10.42.0.0/16}}], ports: [{protocol: UDP, port: 53}]}`)}, `
			client 10.43.0.10 udp 53 yes
			client node udp 5353 no`},
		{"DNS is not the node", []string{out(`{to: [{namespaceSelector: {}}]}`)}, `
			client 10.43.0.10 udp 53 yes
			client node tcp 9153 yes
			client node tcp 443 no
			client web tcp 80 yes`},
		{"the ingress as a pod of kube-system", []string{in(`{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}},
			podSelector: {matchLabels: {app.kubernetes.io/name: ingress}}}], ports: [{port: 80}]}`)}, `
			ingress web tcp 80 yes
			ingress web tcp 81 no
			client web tcp 80 no
			outside web tcp 80 no`},
		{"the ingress in a block", []string{in(`{from: [{ipBlock: {cidr: 10.42.0.0/24}}]}`)}, `
			ingress web tcp 80 yes
			client web tcp 80 yes
			outside web tcp 80 no`},
		{"no policy again", nil, `
			fresh web tcp 80 yes
			outside web tcp 80 yes`},
	}
}
