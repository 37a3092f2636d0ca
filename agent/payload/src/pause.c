// pause is the only program of the pause image: it holds a pod's namespaces open, reaps the
// orphans of pods that share their process namespace, and ends on SIGINT and SIGTERM.
#define _GNU_SOURCE
#include <signal.h>
#include <sys/wait.h>

int main(void)
{
	sigset_t watched;
	int sig;

	// The kernel drops signals without a handler that are sent to the first process of a
	// namespace, except blocked ones: those stay pending, and sigwait takes them.
	sigemptyset(&watched);
	sigaddset(&watched, SIGINT);
	sigaddset(&watched, SIGTERM);
	sigaddset(&watched, SIGCHLD);
	sigprocmask(SIG_BLOCK, &watched, NULL);
	for (;;) {
		if (sigwait(&watched, &sig) != 0)
			continue;
		if (sig != SIGCHLD)
			return 0;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
}
