/* Says how the process is confined, a fact a line. Nothing it tries does harm where it is allowed. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *what, long result) {
	int number = errno;
	printf("%s %s\n", what, result >= 0 ? "ok" : strerrorname_np(number));
}

static void field(const char *name) {
	char line[256], value[64];
	FILE *file = fopen("/proc/self/status", "r");
	size_t length = strlen(name);
	while (fgets(line, sizeof line, file))
		if (!strncmp(line, name, length) && line[length] == ':' && sscanf(line + length + 1, "%63s", value) == 1)
			printf("%s %s\n", name, value);
	fclose(file);
}

static void *wait_for_end(void *end) {
	pthread_mutex_lock(end);
	return NULL;
}

static void threads(void) {
	pthread_mutex_t end = PTHREAD_MUTEX_INITIALIZER;
	pthread_t other;
	pthread_mutex_lock(&end);
	pthread_create(&other, NULL, wait_for_end, &end);
	int all = 0, filtered = 0;
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *task;
	while ((task = readdir(tasks))) {
		char path[512], line[256];
		if (task->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/proc/self/task/%s/status", task->d_name);
		FILE *file = fopen(path, "r");
		all++;
		while (fgets(line, sizeof line, file))
			filtered += !strncmp(line, "Seccomp:\t2", 10);
		fclose(file);
	}
	closedir(tasks);
	printf("threads with a filter %d of %d\n", filtered, all);
	pthread_mutex_unlock(&end);
	pthread_join(other, NULL);
}

/* A child that comes to be ends at once. */
static void cloned(const char *what, long pid) {
	int number = errno;
	if (pid == 0)
		_exit(0);
	if (pid > 0)
		waitpid(pid, NULL, 0);
	errno = number;
	say(what, pid);
}

/* In a child: where it is allowed it changes who may trace the process, or its namespaces. */
static void apart(const char *what, long call, long first, long second) {
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		say(what, syscall(call, first, second, 0, 0, 0));
		fflush(stdout);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
}

static void hidden(const char *path) {
	struct stat stat_of;
	char byte;
	int seen = 0;
	if (stat(path, &stat_of)) {
		/* What the kernel does not have needs no mask. */
	} else if (S_ISDIR(stat_of.st_mode)) {
		DIR *folder = opendir(path);
		struct dirent *entry;
		while (folder && (entry = readdir(folder)))
			seen += entry->d_name[0] != '.';
		if (folder)
			closedir(folder);
	} else {
		int file = open(path, O_RDONLY | O_NONBLOCK);
		seen = file >= 0 && read(file, &byte, 1) == 1;
		close(file);
	}
	printf("%s %s\n", path, seen ? "SEEN" : "hidden");
}

static void read_only(const char *path) {
	struct stat stat_of;
	char inner[256];
	int refused;
	if (stat(path, &stat_of) == 0 && S_ISDIR(stat_of.st_mode)) {
		snprintf(inner, sizeof inner, "%s/orlop-audit", path);
		refused = mkdir(inner, 0700) < 0;
	} else {
		refused = open(path, O_WRONLY) < 0;
	}
	printf("%s %s\n", path, refused && (errno == EROFS || errno == ENOENT) ? "read-only" : "WRITABLE");
}

static void opens(const char *path) {
	int file = open(path, O_RDWR | O_NOCTTY);
	printf("%s %s\n", path, file >= 0 ? "opens" : strerrorname_np(errno));
	close(file);
}

static void device(mode_t kind, int major, int minor) {
	char path[64];
	snprintf(path, sizeof path, "/tmp/audit-%d", getpid());
	long made = mknod(path, kind | 0600, makedev(major, minor));
	int file = made ? -1 : open(path, O_RDONLY | O_NONBLOCK);
	int number = errno;
	unlink(path);
	printf("%s %d:%d %s\n", kind == S_IFBLK ? "block" : "char", major, minor, file >= 0 ? "OPENS" : strerrorname_np(number));
}

int main(void) {
	char zeros[256] = {0};
	struct rlimit files;
	const char *fields[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"};
	for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
		field(fields[i]);
	threads();
	fflush(stdout);
	apart("unshare user", SYS_unshare, CLONE_NEWUSER, 0);
	apart("unshare mount", SYS_unshare, CLONE_NEWNS, 0);
	cloned("clone user", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
	cloned("clone3", syscall(SYS_clone3, zeros, 8));
	say("mount", syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, ""));
	say("umount", syscall(SYS_umount2, "/proc/sys", 2));
	say("open_tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1));
	say("move_mount", syscall(SYS_move_mount, -1, "", -1, "", 0));
	say("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
	say("fsmount", syscall(SYS_fsmount, -1, 0, 0));
	say("pivot_root", syscall(SYS_pivot_root, "/no", "/no"));
	say("setns", syscall(SYS_setns, -1, 0));
	say("keyctl", syscall(SYS_keyctl, 0, -3, 0));
	say("add_key", syscall(SYS_add_key, "user", "a", "b", 1, -3));
	say("bpf", syscall(SYS_bpf, 0, zeros, 8));
	say("perf_event_open", syscall(SYS_perf_event_open, zeros, 0, -1, -1, 0));
	say("io_uring_setup", syscall(SYS_io_uring_setup, 1, zeros));
	say("userfaultfd", syscall(SYS_userfaultfd, 0));
	say("open_by_handle_at", syscall(SYS_open_by_handle_at, -1, zeros, 0));
	say("kexec_load", syscall(SYS_kexec_load, 0, 0, 0, 1 << 30));
	say("init_module", syscall(SYS_init_module, zeros, 0, ""));
	say("finit_module", syscall(SYS_finit_module, -1, "", 0));
	say("delete_module", syscall(SYS_delete_module, "no_such_module", O_NONBLOCK));
	say("reboot", syscall(SYS_reboot, 0, 0, 0, 0));
	say("swapon", syscall(SYS_swapon, "/no", 0));
	say("settimeofday", syscall(SYS_settimeofday, NULL, (void *)1));
	say("personality", syscall(SYS_personality, 0x0400000));
	apart("ptrace", SYS_ptrace, 0, 0);
	say("AF_ALG", socket(38, SOCK_SEQPACKET, 0));
	say("AF_VSOCK", socket(40, SOCK_STREAM, 0));
	say("AF_INET", socket(AF_INET, SOCK_STREAM, 0));
	say("AF_PACKET", socket(AF_PACKET, SOCK_RAW, 0));
	const char *masked[] = {"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/acpi", "/proc/scsi",
				"/sys/firmware", "/sys/devices/virtual/powercap"};
	for (size_t i = 0; i < sizeof masked / sizeof *masked; i++)
		hidden(masked[i]);
	const char *protected[] = {"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/bus", "/proc/fs", "/proc/irq",
				   "/sys", "/sys/fs/cgroup"};
	for (size_t i = 0; i < sizeof protected / sizeof *protected; i++)
		read_only(protected[i]);
	const char *devices[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/ptmx"};
	for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
		opens(devices[i]);
	device(S_IFBLK, 8, 0);
	device(S_IFCHR, 1, 1);
	device(S_IFCHR, 1, 11);
	device(S_IFCHR, 10, 229);
	device(S_IFCHR, 10, 200);
	getrlimit(RLIMIT_NOFILE, &files);
	printf("open files %llu %llu\n", (unsigned long long)files.rlim_cur, (unsigned long long)files.rlim_max);
	return 0;
}
