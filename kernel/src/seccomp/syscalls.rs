//! Numbers of system calls by name.

use super::i386;

/// The number of a system call, if this machine has it.
pub(super) fn number(name: &str) -> Option<u32> {
    look_up(SHARED, name).or_else(|| look_up(CALLS, name).map(|number| number as u32))
}

/// The number that 32-bit x86 programs use for a system call.
pub(super) fn number_i386(name: &str) -> Option<u32> {
    look_up(SHARED, name).or_else(|| look_up(i386::CALLS, name))
}

fn look_up<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.binary_search_by_key(&name, |(known, _)| known).ok().map(|at| table[at].1)
}

/// Since Linux 5.1 new calls have one number on all architectures.
#[rustfmt::skip]
const SHARED: &[(&str, u32)] = &[
    ("cachestat", 451), ("clone3", 435), ("close_range", 436), ("epoll_pwait2", 441), ("faccessat2", 439),
    ("fchmodat2", 452), ("file_getattr", 468), ("file_setattr", 469), ("fsconfig", 431), ("fsmount", 432),
    ("fsopen", 430), ("fspick", 433), ("futex_requeue", 456), ("futex_wait", 455), ("futex_waitv", 449),
    ("futex_wake", 454), ("getxattrat", 464), ("io_uring_enter", 426), ("io_uring_register", 427),
    ("io_uring_setup", 425), ("landlock_add_rule", 445), ("landlock_create_ruleset", 444),
    ("landlock_restrict_self", 446), ("listmount", 458), ("listxattrat", 465), ("lsm_get_self_attr", 459),
    ("lsm_list_modules", 461), ("lsm_set_self_attr", 460), ("map_shadow_stack", 453), ("memfd_secret", 447),
    ("mount_setattr", 442), ("move_mount", 429), ("mseal", 462), ("open_tree", 428), ("open_tree_attr", 467),
    ("openat2", 437), ("pidfd_getfd", 438), ("pidfd_open", 434), ("pidfd_send_signal", 424), ("process_madvise", 440),
    ("process_mrelease", 448), ("quotactl_fd", 443), ("removexattrat", 466), ("set_mempolicy_home_node", 450),
    ("setxattrat", 463), ("statmount", 457),
];

/// Every call that the C library's headers know on this architecture, in the order of their names.
#[rustfmt::skip]
const CALLS: &[(&str, libc::c_long)] = &[
    ("_sysctl", libc::SYS__sysctl), ("accept", libc::SYS_accept), ("accept4", libc::SYS_accept4),
    ("access", libc::SYS_access), ("acct", libc::SYS_acct), ("add_key", libc::SYS_add_key),
    ("adjtimex", libc::SYS_adjtimex), ("afs_syscall", libc::SYS_afs_syscall), ("alarm", libc::SYS_alarm),
    ("arch_prctl", libc::SYS_arch_prctl), ("bind", libc::SYS_bind), ("bpf", libc::SYS_bpf), ("brk", libc::SYS_brk),
    ("capget", libc::SYS_capget), ("capset", libc::SYS_capset), ("chdir", libc::SYS_chdir),
    ("chmod", libc::SYS_chmod), ("chown", libc::SYS_chown), ("chroot", libc::SYS_chroot),
    ("clock_adjtime", libc::SYS_clock_adjtime), ("clock_getres", libc::SYS_clock_getres),
    ("clock_gettime", libc::SYS_clock_gettime), ("clock_nanosleep", libc::SYS_clock_nanosleep),
    ("clock_settime", libc::SYS_clock_settime), ("clone", libc::SYS_clone), ("close", libc::SYS_close),
    ("connect", libc::SYS_connect), ("copy_file_range", libc::SYS_copy_file_range), ("creat", libc::SYS_creat),
    ("delete_module", libc::SYS_delete_module), ("dup", libc::SYS_dup), ("dup2", libc::SYS_dup2),
    ("dup3", libc::SYS_dup3), ("epoll_create", libc::SYS_epoll_create), ("epoll_create1", libc::SYS_epoll_create1),
    ("epoll_ctl", libc::SYS_epoll_ctl), ("epoll_ctl_old", libc::SYS_epoll_ctl_old),
    ("epoll_pwait", libc::SYS_epoll_pwait), ("epoll_wait", libc::SYS_epoll_wait),
    ("epoll_wait_old", libc::SYS_epoll_wait_old), ("eventfd", libc::SYS_eventfd), ("eventfd2", libc::SYS_eventfd2),
    ("execve", libc::SYS_execve), ("execveat", libc::SYS_execveat), ("exit", libc::SYS_exit),
    ("exit_group", libc::SYS_exit_group), ("faccessat", libc::SYS_faccessat), ("fadvise64", libc::SYS_fadvise64),
    ("fallocate", libc::SYS_fallocate), ("fanotify_init", libc::SYS_fanotify_init),
    ("fanotify_mark", libc::SYS_fanotify_mark), ("fchdir", libc::SYS_fchdir), ("fchmod", libc::SYS_fchmod),
    ("fchmodat", libc::SYS_fchmodat), ("fchown", libc::SYS_fchown), ("fchownat", libc::SYS_fchownat),
    ("fcntl", libc::SYS_fcntl), ("fdatasync", libc::SYS_fdatasync), ("fgetxattr", libc::SYS_fgetxattr),
    ("finit_module", libc::SYS_finit_module), ("flistxattr", libc::SYS_flistxattr), ("flock", libc::SYS_flock),
    ("fork", libc::SYS_fork), ("fremovexattr", libc::SYS_fremovexattr), ("fsetxattr", libc::SYS_fsetxattr),
    ("fstat", libc::SYS_fstat), ("fstatfs", libc::SYS_fstatfs), ("fsync", libc::SYS_fsync),
    ("ftruncate", libc::SYS_ftruncate), ("futex", libc::SYS_futex), ("futimesat", libc::SYS_futimesat),
    ("get_mempolicy", libc::SYS_get_mempolicy), ("get_robust_list", libc::SYS_get_robust_list),
    ("get_thread_area", libc::SYS_get_thread_area), ("getcpu", libc::SYS_getcpu), ("getcwd", libc::SYS_getcwd),
    ("getdents", libc::SYS_getdents), ("getdents64", libc::SYS_getdents64), ("getegid", libc::SYS_getegid),
    ("geteuid", libc::SYS_geteuid), ("getgid", libc::SYS_getgid), ("getgroups", libc::SYS_getgroups),
    ("getitimer", libc::SYS_getitimer), ("getpeername", libc::SYS_getpeername), ("getpgid", libc::SYS_getpgid),
    ("getpgrp", libc::SYS_getpgrp), ("getpid", libc::SYS_getpid), ("getpmsg", libc::SYS_getpmsg),
    ("getppid", libc::SYS_getppid), ("getpriority", libc::SYS_getpriority), ("getrandom", libc::SYS_getrandom),
    ("getresgid", libc::SYS_getresgid), ("getresuid", libc::SYS_getresuid), ("getrlimit", libc::SYS_getrlimit),
    ("getrusage", libc::SYS_getrusage), ("getsid", libc::SYS_getsid), ("getsockname", libc::SYS_getsockname),
    ("getsockopt", libc::SYS_getsockopt), ("gettid", libc::SYS_gettid), ("gettimeofday", libc::SYS_gettimeofday),
    ("getuid", libc::SYS_getuid), ("getxattr", libc::SYS_getxattr), ("init_module", libc::SYS_init_module),
    ("inotify_add_watch", libc::SYS_inotify_add_watch), ("inotify_init", libc::SYS_inotify_init),
    ("inotify_init1", libc::SYS_inotify_init1), ("inotify_rm_watch", libc::SYS_inotify_rm_watch),
    ("io_cancel", libc::SYS_io_cancel), ("io_destroy", libc::SYS_io_destroy),
    ("io_getevents", libc::SYS_io_getevents), ("io_pgetevents", 333), ("io_setup", libc::SYS_io_setup),
    ("io_submit", libc::SYS_io_submit), ("ioctl", libc::SYS_ioctl), ("ioperm", libc::SYS_ioperm),
    ("iopl", libc::SYS_iopl), ("ioprio_get", libc::SYS_ioprio_get), ("ioprio_set", libc::SYS_ioprio_set),
    ("kcmp", libc::SYS_kcmp), ("kexec_file_load", libc::SYS_kexec_file_load), ("kexec_load", libc::SYS_kexec_load),
    ("keyctl", libc::SYS_keyctl), ("kill", libc::SYS_kill), ("lchown", libc::SYS_lchown),
    ("lgetxattr", libc::SYS_lgetxattr), ("link", libc::SYS_link), ("linkat", libc::SYS_linkat),
    ("listen", libc::SYS_listen), ("listxattr", libc::SYS_listxattr), ("llistxattr", libc::SYS_llistxattr),
    ("lookup_dcookie", libc::SYS_lookup_dcookie), ("lremovexattr", libc::SYS_lremovexattr),
    ("lseek", libc::SYS_lseek), ("lsetxattr", libc::SYS_lsetxattr), ("lstat", libc::SYS_lstat),
    ("madvise", libc::SYS_madvise), ("mbind", libc::SYS_mbind), ("membarrier", libc::SYS_membarrier),
    ("memfd_create", libc::SYS_memfd_create), ("migrate_pages", libc::SYS_migrate_pages),
    ("mincore", libc::SYS_mincore), ("mkdir", libc::SYS_mkdir), ("mkdirat", libc::SYS_mkdirat),
    ("mknod", libc::SYS_mknod), ("mknodat", libc::SYS_mknodat), ("mlock", libc::SYS_mlock),
    ("mlock2", libc::SYS_mlock2), ("mlockall", libc::SYS_mlockall), ("mmap", libc::SYS_mmap),
    ("modify_ldt", libc::SYS_modify_ldt), ("mount", libc::SYS_mount), ("move_pages", libc::SYS_move_pages),
    ("mprotect", libc::SYS_mprotect), ("mq_getsetattr", libc::SYS_mq_getsetattr), ("mq_notify", libc::SYS_mq_notify),
    ("mq_open", libc::SYS_mq_open), ("mq_timedreceive", libc::SYS_mq_timedreceive),
    ("mq_timedsend", libc::SYS_mq_timedsend), ("mq_unlink", libc::SYS_mq_unlink), ("mremap", libc::SYS_mremap),
    ("msgctl", libc::SYS_msgctl), ("msgget", libc::SYS_msgget), ("msgrcv", libc::SYS_msgrcv),
    ("msgsnd", libc::SYS_msgsnd), ("msync", libc::SYS_msync), ("munlock", libc::SYS_munlock),
    ("munlockall", libc::SYS_munlockall), ("munmap", libc::SYS_munmap),
    ("name_to_handle_at", libc::SYS_name_to_handle_at), ("nanosleep", libc::SYS_nanosleep),
    ("newfstatat", libc::SYS_newfstatat), ("nfsservctl", libc::SYS_nfsservctl), ("open", libc::SYS_open),
    ("open_by_handle_at", libc::SYS_open_by_handle_at), ("openat", libc::SYS_openat), ("pause", libc::SYS_pause),
    ("perf_event_open", libc::SYS_perf_event_open), ("personality", libc::SYS_personality), ("pipe", libc::SYS_pipe),
    ("pipe2", libc::SYS_pipe2), ("pivot_root", libc::SYS_pivot_root), ("pkey_alloc", libc::SYS_pkey_alloc),
    ("pkey_free", libc::SYS_pkey_free), ("pkey_mprotect", libc::SYS_pkey_mprotect), ("poll", libc::SYS_poll),
    ("ppoll", libc::SYS_ppoll), ("prctl", libc::SYS_prctl), ("pread64", libc::SYS_pread64),
    ("preadv", libc::SYS_preadv), ("preadv2", libc::SYS_preadv2), ("prlimit64", libc::SYS_prlimit64),
    ("process_vm_readv", libc::SYS_process_vm_readv), ("process_vm_writev", libc::SYS_process_vm_writev),
    ("pselect6", libc::SYS_pselect6), ("ptrace", libc::SYS_ptrace), ("putpmsg", libc::SYS_putpmsg),
    ("pwrite64", libc::SYS_pwrite64), ("pwritev", libc::SYS_pwritev), ("pwritev2", libc::SYS_pwritev2),
    ("quotactl", libc::SYS_quotactl), ("read", libc::SYS_read), ("readahead", libc::SYS_readahead),
    ("readlink", libc::SYS_readlink), ("readlinkat", libc::SYS_readlinkat), ("readv", libc::SYS_readv),
    ("reboot", libc::SYS_reboot), ("recvfrom", libc::SYS_recvfrom), ("recvmmsg", libc::SYS_recvmmsg),
    ("recvmsg", libc::SYS_recvmsg), ("remap_file_pages", libc::SYS_remap_file_pages),
    ("removexattr", libc::SYS_removexattr), ("rename", libc::SYS_rename), ("renameat", libc::SYS_renameat),
    ("renameat2", libc::SYS_renameat2), ("request_key", libc::SYS_request_key),
    ("restart_syscall", libc::SYS_restart_syscall), ("rmdir", libc::SYS_rmdir), ("rseq", libc::SYS_rseq),
    ("rt_sigaction", libc::SYS_rt_sigaction), ("rt_sigpending", libc::SYS_rt_sigpending),
    ("rt_sigprocmask", libc::SYS_rt_sigprocmask), ("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo),
    ("rt_sigreturn", libc::SYS_rt_sigreturn), ("rt_sigsuspend", libc::SYS_rt_sigsuspend),
    ("rt_sigtimedwait", libc::SYS_rt_sigtimedwait), ("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo),
    ("sched_get_priority_max", libc::SYS_sched_get_priority_max),
    ("sched_get_priority_min", libc::SYS_sched_get_priority_min), ("sched_getaffinity", libc::SYS_sched_getaffinity),
    ("sched_getattr", libc::SYS_sched_getattr), ("sched_getparam", libc::SYS_sched_getparam),
    ("sched_getscheduler", libc::SYS_sched_getscheduler), ("sched_rr_get_interval", libc::SYS_sched_rr_get_interval),
    ("sched_setaffinity", libc::SYS_sched_setaffinity), ("sched_setattr", libc::SYS_sched_setattr),
    ("sched_setparam", libc::SYS_sched_setparam), ("sched_setscheduler", libc::SYS_sched_setscheduler),
    ("sched_yield", libc::SYS_sched_yield), ("seccomp", libc::SYS_seccomp), ("security", libc::SYS_security),
    ("select", libc::SYS_select), ("semctl", libc::SYS_semctl), ("semget", libc::SYS_semget),
    ("semop", libc::SYS_semop), ("semtimedop", libc::SYS_semtimedop), ("sendfile", libc::SYS_sendfile),
    ("sendmmsg", libc::SYS_sendmmsg), ("sendmsg", libc::SYS_sendmsg), ("sendto", libc::SYS_sendto),
    ("set_mempolicy", libc::SYS_set_mempolicy), ("set_robust_list", libc::SYS_set_robust_list),
    ("set_thread_area", libc::SYS_set_thread_area), ("set_tid_address", libc::SYS_set_tid_address),
    ("setdomainname", libc::SYS_setdomainname), ("setfsgid", libc::SYS_setfsgid), ("setfsuid", libc::SYS_setfsuid),
    ("setgid", libc::SYS_setgid), ("setgroups", libc::SYS_setgroups), ("sethostname", libc::SYS_sethostname),
    ("setitimer", libc::SYS_setitimer), ("setns", libc::SYS_setns), ("setpgid", libc::SYS_setpgid),
    ("setpriority", libc::SYS_setpriority), ("setregid", libc::SYS_setregid), ("setresgid", libc::SYS_setresgid),
    ("setresuid", libc::SYS_setresuid), ("setreuid", libc::SYS_setreuid), ("setrlimit", libc::SYS_setrlimit),
    ("setsid", libc::SYS_setsid), ("setsockopt", libc::SYS_setsockopt), ("settimeofday", libc::SYS_settimeofday),
    ("setuid", libc::SYS_setuid), ("setxattr", libc::SYS_setxattr), ("shmat", libc::SYS_shmat),
    ("shmctl", libc::SYS_shmctl), ("shmdt", libc::SYS_shmdt), ("shmget", libc::SYS_shmget),
    ("shutdown", libc::SYS_shutdown), ("sigaltstack", libc::SYS_sigaltstack), ("signalfd", libc::SYS_signalfd),
    ("signalfd4", libc::SYS_signalfd4), ("socket", libc::SYS_socket), ("socketpair", libc::SYS_socketpair),
    ("splice", libc::SYS_splice), ("stat", libc::SYS_stat), ("statfs", libc::SYS_statfs), ("statx", libc::SYS_statx),
    ("swapoff", libc::SYS_swapoff), ("swapon", libc::SYS_swapon), ("symlink", libc::SYS_symlink),
    ("symlinkat", libc::SYS_symlinkat), ("sync", libc::SYS_sync), ("sync_file_range", libc::SYS_sync_file_range),
    ("syncfs", libc::SYS_syncfs), ("sysfs", libc::SYS_sysfs), ("sysinfo", libc::SYS_sysinfo),
    ("syslog", libc::SYS_syslog), ("tee", libc::SYS_tee), ("tgkill", libc::SYS_tgkill), ("time", libc::SYS_time),
    ("timer_create", libc::SYS_timer_create), ("timer_delete", libc::SYS_timer_delete),
    ("timer_getoverrun", libc::SYS_timer_getoverrun), ("timer_gettime", libc::SYS_timer_gettime),
    ("timer_settime", libc::SYS_timer_settime), ("timerfd_create", libc::SYS_timerfd_create),
    ("timerfd_gettime", libc::SYS_timerfd_gettime), ("timerfd_settime", libc::SYS_timerfd_settime),
    ("times", libc::SYS_times), ("tkill", libc::SYS_tkill), ("truncate", libc::SYS_truncate),
    ("tuxcall", libc::SYS_tuxcall), ("umask", libc::SYS_umask), ("umount2", libc::SYS_umount2),
    ("uname", libc::SYS_uname), ("unlink", libc::SYS_unlink), ("unlinkat", libc::SYS_unlinkat),
    ("unshare", libc::SYS_unshare), ("uretprobe", 335), ("uselib", libc::SYS_uselib),
    ("userfaultfd", libc::SYS_userfaultfd), ("ustat", libc::SYS_ustat), ("utime", libc::SYS_utime),
    ("utimensat", libc::SYS_utimensat), ("utimes", libc::SYS_utimes), ("vfork", libc::SYS_vfork),
    ("vhangup", libc::SYS_vhangup), ("vmsplice", libc::SYS_vmsplice), ("vserver", libc::SYS_vserver),
    ("wait4", libc::SYS_wait4), ("waitid", libc::SYS_waitid), ("write", libc::SYS_write),
    ("writev", libc::SYS_writev),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_in_order() {
        assert!(SHARED.is_sorted() && CALLS.is_sorted() && i386::CALLS.is_sorted());
        assert_eq!(
            (number("read"), number("mseal"), number("nothing")),
            (Some(libc::SYS_read as u32), Some(462), None)
        );
        assert_eq!((number_i386("read"), number_i386("socketcall")), (Some(3), Some(102)));
    }
}
