package api

// Changes joins the news of several watches: change may be called at any time and by anybody and never waits, and changed
// has one value as long as there was any change since it was last received from.
func Changes() (changed <-chan struct{}, change func()) {
	pending := make(chan struct{}, 1)
	return pending, func() {
		select {
		case pending <- struct{}{}:
		default:
		}
	}
}
