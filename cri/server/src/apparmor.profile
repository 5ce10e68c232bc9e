# The AppArmor profile of containers that name none. All that is not denied here is the business of capabilities,
# seccomp, devices and mounts; what is denied stays so where one of those is loosened for a pod.

profile orlop-default flags=(attach_disconnected,mediate_deleted) {
  capability,
  file,
  network,
  unix,
  umount,

  # Nothing is mounted, and nothing that is mounted changes.
  deny mount,
  deny remount,

  # Signals and tracing stay among containers; the machine may send signals to all of them.
  signal (receive) peer=unconfined,
  signal (receive) peer={runc,crun,/usr/bin/runc,/usr/sbin/runc,/usr/bin/crun},
  signal (send, receive) peer=orlop-default,
  ptrace (read, trace, readby, tracedby) peer=orlop-default,

  # /proc is written below the folders of processes alone (digits) ...
  deny /proc/* w,
  deny /proc/{[^0-9s]*,s[^y]*,sy[^s]*,sys?*}/** w,
  # ... and at the limits of System V shared memory, which belong to the pod: /proc/sys/kernel/shm*.
  deny /proc/sys/{[^k]*,k[^e]*,ke[^r]*}/** w,
  deny /proc/sys/kernel/{[^s]*,s[^h]*,sh[^m]*} w,
  deny /proc/sys/kernel/*/** w,
  deny /proc/{kcore,kmem,mem,sysrq-trigger} rwklx,

  # /sys is written below /sys/fs/cgroup alone.
  deny /sys/* wklx,
  deny /sys/{[^f]*,f[^s]*}/** wklx,
  deny /sys/fs/{[^c]*,c[^g]*,cg[^r]*}/** wklx,
  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/** rwklx,
}
