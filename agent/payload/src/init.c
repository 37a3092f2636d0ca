// init is the first process of a container or namespace: it runs its arguments as a child,
// passes signals on to it, reaps every orphan, and exits as the child did (128+n on signal n).
// 126 and 127 mean, as in a shell, that the program could not be run or was not found.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static const int forwarded[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGQUIT};

static int exit_code(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

// reap waits for everything that has ended and returns the exit code of main_child,
// or -1 while that still runs.
static int reap(pid_t main_child)
{
	int code = -1, status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		if (pid == main_child)
			code = exit_code(status);
	return code;
}

int main(int argc, char **argv)
{
	sigset_t watched, inherited;
	pid_t child;
	int code, sig;

	if (argc < 2) {
		fprintf(stderr, "usage: init PROGRAM [ARGUMENT]...\n");
		return 2;
	}
	// Signals are blocked before the fork, so that none is lost between fork and wait.
	sigemptyset(&watched);
	sigaddset(&watched, SIGCHLD);
	for (size_t i = 0; i < sizeof forwarded / sizeof *forwarded; i++)
		sigaddset(&watched, forwarded[i]);
	sigprocmask(SIG_BLOCK, &watched, &inherited);
	// An ignored SIGCHLD survives exec and would make the kernel throw the exit status away.
	signal(SIGCHLD, SIG_DFL);
	// Outside a PID namespace of its own, orphans come here only when asked for.
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);

	child = fork();
	if (child < 0) {
		fprintf(stderr, "init: cannot start %s: %s\n", argv[1], strerror(errno));
		return 126;
	}
	if (child == 0) {
		sigprocmask(SIG_SETMASK, &inherited, NULL);
		execvp(argv[1], argv + 1);
		code = errno == ENOENT ? 127 : 126;
		fprintf(stderr, "init: cannot run %s: %s\n", argv[1], strerror(errno));
		_exit(code);
	}
	for (;;) {
		if (sigwait(&watched, &sig) != 0)
			continue;
		if (sig != SIGCHLD)
			kill(child, sig);
		else if ((code = reap(child)) >= 0)
			return code;
	}
}
