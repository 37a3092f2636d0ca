package api

// Changes merges the notifications of several watches. Any goroutine may call change at any time;
// it never waits. changed holds one value if there was any change since the last receive.
func Changes() (changed <-chan struct{}, change func()) {
	pending := make(chan struct{}, 1)
	return pending, func() {
		select {
		case pending <- struct{}{}:
		default:
		}
	}
}
