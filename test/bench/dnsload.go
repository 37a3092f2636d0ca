package main

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
	"unsafe"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	// saturate sends queries over loadSockets sockets, with loadWindow outstanding queries on each,
	// for the time saturated.
	loadSockets, loadWindow = 8, 8
	saturated               = 4 * time.Second
	// pace sends pacedRate queries per second for the time paced.
	pacedRate = 5000
	paced     = 5 * time.Second
	// lateAnswer is the time after which a query without an answer is lost.
	lateAnswer = 2 * time.Second
)

// question returns a query for a Service's address in wire format; its first two bytes are its
// number.
func question() ([]byte, error) {
	return new(dns.Msg).SetQuestion("kubernetes.default.svc.cluster.local.", dns.TypeA).Pack()
}

func setNumber(query []byte, number uint16) { query[0], query[1] = byte(number>>8), byte(number) }

// checkAnswer checks an answer and returns the number of its query.
func checkAnswer(answer []byte) (number uint16, err error) {
	if len(answer) < 12 || answer[3]&0xf != dns.RcodeSuccess || answer[7] == 0 {
		return 0, errors.New("the server does not know the name")
	}
	return uint16(answer[0])<<8 | uint16(answer[1]), nil
}

// asker is one socket of the load. It receives and sends many packets with one system call, so that
// it uses little of the processors, which it shares with the server.
type asker struct {
	*net.UDPConn
	packets *ipv4.PacketConn
	query   []byte
	in, out []ipv4.Message
}

func newAsker(conn *net.UDPConn) (*asker, error) {
	query, err := question()
	if err != nil {
		return nil, err
	}
	a := &asker{
		UDPConn: conn, packets: ipv4.NewPacketConn(conn), query: query,
		in: make([]ipv4.Message, loadWindow), out: make([]ipv4.Message, loadWindow),
	}
	for i := range loadWindow {
		a.in[i] = ipv4.Message{Buffers: [][]byte{make([]byte, dns.MinMsgSize)}, OOB: make([]byte, unix.CmsgSpace(int(unsafe.Sizeof(unix.Timespec{}))))}
		a.out[i] = ipv4.Message{Buffers: [][]byte{query}}
	}
	return a, nil
}

// ask sends n queries.
func (a *asker) ask(n int) error {
	for sent := 0; sent < n; {
		more, err := a.packets.WriteBatch(a.out[sent:n], 0)
		if err != nil {
			return err
		}
		sent += more
	}
	return nil
}

// read waits for answers and returns those that have arrived.
func (a *asker) read() ([]ipv4.Message, error) {
	n, err := a.packets.ReadBatch(a.in, 0)
	return a.in[:max(n, 0)], err
}

func (a *asker) saturate(end time.Time) (count int, err error) {
	if err := a.SetDeadline(end.Add(lateAnswer)); err != nil {
		return 0, err
	}
	if err := a.ask(loadWindow); err != nil {
		return 0, err
	}
	for underWay := loadWindow; underWay > 0; {
		answers, err := a.read()
		if err != nil {
			return count, fmt.Errorf("wait for %d answers: %w", underWay, err)
		}
		for _, m := range answers {
			if _, err := checkAnswer(m.Buffers[0][:m.N]); err != nil {
				return count, err
			}
		}
		if time.Now().After(end) {
			underWay -= len(answers)
			continue
		}
		count += len(answers)
		if err := a.ask(len(answers)); err != nil {
			return count, err
		}
	}
	return count, nil
}

func (p insidePod) askers(address string) ([]*asker, error) {
	conns, err := p.dial(address, loadSockets)
	if err != nil {
		return nil, err
	}
	var askers []*asker
	for _, conn := range conns {
		a, err := newAsker(conn)
		if err != nil {
			closeAll(conns)
			return nil, err
		}
		askers = append(askers, a)
	}
	return askers, nil
}

// saturate sends queries as fast as answers arrive, and counts the answers.
func (p insidePod) saturate(address string) (count int, err error) {
	askers, err := p.askers(address)
	if err != nil {
		return 0, err
	}
	var asking sync.WaitGroup
	counts, errs := make([]int, len(askers)), make([]error, len(askers))
	end := time.Now().Add(saturated)
	for i, a := range askers {
		asking.Go(func() {
			defer a.Close()
			counts[i], errs[i] = a.saturate(end)
		})
	}
	asking.Wait()
	for _, n := range counts {
		count += n
	}
	return count, errors.Join(errs...)
}

// pace sends queries at a steady rate, whether answers arrive or not. It returns the time of each
// answer in milliseconds.
func (p insidePod) pace(address string) (times sample, lost int, err error) {
	askers, err := p.askers(address)
	if err != nil {
		return nil, 0, err
	}
	each := int(paced.Seconds()*pacedRate) / len(askers)
	sent, arrived := make([][]time.Time, len(askers)), make([][]time.Time, len(askers)) // by the query's number
	errs := make([]error, len(askers))
	var reading sync.WaitGroup
	begin := time.Now()
	for i, a := range askers {
		sent[i], arrived[i] = make([]time.Time, each), make([]time.Time, each)
		reading.Go(func() {
			defer a.Close()
			errs[i] = a.collect(arrived[i], begin.Add(paced+lateAnswer))
		})
	}
	for n := range each * len(askers) {
		time.Sleep(time.Until(begin.Add(time.Duration(n) * time.Second / pacedRate)))
		a, number := askers[n%len(askers)], n/len(askers)
		setNumber(a.query, uint16(number))
		sent[n%len(askers)][number] = time.Now()
		if _, err := a.Write(a.query); err != nil {
			errs = append(errs, err)
			break
		}
	}
	reading.Wait()
	for i := range askers {
		for number, at := range arrived[i] {
			if at.IsZero() {
				lost++
				continue
			}
			times = append(times, float64(at.Sub(sent[i][number].Round(0)))/float64(time.Millisecond))
		}
	}
	return times, lost, errors.Join(errs...)
}

// collect receives the answers to as many queries as arrived has room for, until late. It uses the
// kernel's time of arrival: the server is not responsible for how late this program reads the
// answer.
func (a *asker) collect(arrived []time.Time, late time.Time) error {
	socket, err := a.SyscallConn()
	if err != nil {
		return err
	}
	var optionErr error
	err = socket.Control(func(fd uintptr) {
		optionErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	})
	if err := errors.Join(err, optionErr, a.SetReadDeadline(late)); err != nil {
		return err
	}
	for taken := 0; taken < len(arrived); {
		answers, err := a.read()
		if err != nil {
			return nil // the others are lost
		}
		for _, m := range answers {
			number, err := checkAnswer(m.Buffers[0][:m.N])
			if err != nil {
				return err
			}
			if arrived[number], err = stamp(m.OOB[:m.NN]); err != nil {
				return err
			}
			taken++
		}
	}
	return nil
}

// stamp returns the arrival time that the kernel has attached to a packet.
func stamp(beside []byte) (time.Time, error) {
	messages, err := unix.ParseSocketControlMessage(beside)
	if err != nil {
		return time.Time{}, err
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS {
			at := (*unix.Timespec)(unsafe.Pointer(unsafe.SliceData(m.Data)))
			return time.Unix(at.Unix()), nil
		}
	}
	return time.Time{}, errors.New("the kernel does not say when a packet arrived")
}
