"""What a confined process may ask of the kernel. Pure data.

Reading, memory, time, threads and pipes that are already open: what it takes to compute. Not here,
and therefore refused: sockets, new processes and programs, signals to others, writing, creating,
renaming or deleting files, changing owners, limits, clocks, mounts or namespaces, tracing, shared
memory between processes, io_uring, and whatever later kernels add.
"""

from dataclasses import dataclass

CLONE_THREAD = 0x10000
O_ACCMODE, O_CREAT, O_TRUNC = 0o3, 0o100, 0o1000
ALL_BITS = 0xFFFFFFFF
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX: they ask, or mark a descriptor."""

FCNTLS = (0, 1, 2, 3, 4, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC; not F_SETOWN, which signals."""

PRCTLS = (15, 16)
"""PR_SET_NAME, PR_GET_NAME."""


@dataclass(frozen=True)
class Machine:
    """What differs between processor architectures."""

    audit: int
    """AUDIT_ARCH_* of linux/audit.h."""

    column: int
    """Column of the call numbers in `TABLE`."""


MACHINES = {"x86_64": Machine(0xC000003E, 0), "aarch64": Machine(0xC00000B7, 1)}


@dataclass(frozen=True)
class Condition:
    """Half an argument of a call, masked, must be one of some values."""

    argument: int
    """0 to 5."""

    values: tuple[int, ...]
    mask: int = ALL_BITS
    high: bool = False
    """The upper 32 bits rather than the lower."""


def conditions(own_pid: int) -> dict[str, tuple[Condition, ...]]:
    """Calls allowed for some arguments only: all conditions must hold."""
    read_only = O_ACCMODE | O_CREAT | O_TRUNC
    return {
        "open": (Condition(1, (0,), read_only),),
        "openat": (Condition(2, (0,), read_only),),
        "clone": (Condition(0, (CLONE_THREAD,), CLONE_THREAD),),
        "ioctl": (Condition(1, IOCTLS),),
        "fcntl": (Condition(1, FCNTLS),),
        "prctl": (Condition(0, PRCTLS),),
        # Limits may be read, not set.
        "prlimit64": (Condition(2, (0,)), Condition(2, (0,), high=True)),
        # What abort() does.
        "tgkill": (Condition(0, (own_pid,)),),
    }


ABSENT = ("clone3", "openat2")
"""Their arguments are in memory, where a filter cannot look. C libraries go back to the older
calls where these are said not to exist."""


def numbers(machine: Machine) -> dict[str, int]:
    """Call numbers of every allowed or absent call."""
    rows = (line.split() for line in TABLE.strip().splitlines())
    columns = {name: (x86_64, aarch64) for name, x86_64, aarch64 in rows}
    chosen = {name: column[machine.column] for name, column in columns.items()}
    return {name: int(number) for name, number in chosen.items() if number != "-"}


# Name, x86_64 (asm/unistd_64.h), aarch64 (asm-generic/unistd.h).
TABLE = """
read 0 63
write 1 64
close 3 57
fstat 5 80
newfstatat 262 79
stat 4 -
lstat 6 -
statx 332 291
lseek 8 62
mmap 9 222
mprotect 10 226
munmap 11 215
brk 12 214
mremap 25 216
madvise 28 233
mincore 27 232
rt_sigaction 13 134
rt_sigprocmask 14 135
rt_sigreturn 15 139
sigaltstack 131 132
rt_sigpending 127 136
rt_sigtimedwait 128 137
pread64 17 67
readv 19 65
writev 20 66
access 21 -
faccessat 269 48
faccessat2 439 439
readlink 89 -
readlinkat 267 78
getcwd 79 17
getdents64 217 61
statfs 137 43
fstatfs 138 44
fadvise64 221 223
pipe 22 -
pipe2 293 59
poll 7 -
ppoll 271 73
select 23 -
pselect6 270 72
epoll_create1 291 20
epoll_ctl 233 21
epoll_wait 232 -
epoll_pwait 281 22
eventfd2 290 19
dup 32 23
dup2 33 -
dup3 292 24
sched_yield 24 124
sched_getaffinity 204 123
sched_getparam 143 121
sched_getscheduler 145 120
getcpu 309 168
nanosleep 35 101
clock_nanosleep 230 115
clock_gettime 228 113
clock_getres 229 114
gettimeofday 96 169
time 201 -
times 100 153
alarm 37 -
getitimer 36 102
setitimer 38 103
getpid 39 172
getppid 110 173
gettid 186 178
getuid 102 174
geteuid 107 175
getgid 104 176
getegid 108 177
getgroups 115 158
getresuid 118 148
getresgid 120 150
getpgid 121 155
getsid 124 156
uname 63 160
sysinfo 99 179
getrusage 98 165
getrlimit 97 163
futex 202 98
set_tid_address 218 96
set_robust_list 273 99
get_robust_list 274 100
rseq 334 293
membarrier 324 283
exit 60 93
exit_group 231 94
restart_syscall 219 128
arch_prctl 158 -
getrandom 318 278
open 2 -
openat 257 56
openat2 437 437
clone 56 220
clone3 435 435
ioctl 16 29
fcntl 72 25
prctl 157 167
prlimit64 302 261
tgkill 234 131
"""
