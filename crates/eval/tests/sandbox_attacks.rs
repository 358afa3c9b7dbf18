//! What a program must not be able to do, one test for each attack, and what it must be able to do.
//!
//! Every test ends with two questions: is a process left, and does the sandbox still work? Where this system cannot confine
//! programs (no user namespaces, no Landlock), the tests say so and pass, unless `KANANA_SANDBOX_REQUIRED` is set.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kanana_eval::sandbox::{Finished, Limits, Program, Sandbox, Status};

/// One at a time: a process that is left is then the fault of the test that runs.
static TURN: Mutex<()> = Mutex::new(());

fn sandbox() -> Option<(&'static Sandbox, MutexGuard<'static, ()>)> {
    static SANDBOX: OnceLock<Option<Sandbox>> = OnceLock::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = SANDBOX.get_or_init(|| {
        // What escapes becomes a child of this process, and is seen.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let built = Sandbox::builder().launcher(env!("CARGO_BIN_EXE_kanana-sandbox")).build();
        if std::env::var_os("KANANA_SANDBOX_REQUIRED").is_some() {
            return Some(built.unwrap());
        }
        built.inspect_err(|error| println!("skipped: {error}")).ok()
    });
    Some((sandbox.as_ref()?, turn))
}

fn limits() -> Limits {
    Limits { wall: Duration::from_secs(20), memory: 1 << 30, ..Limits::default() }
}

/// Runs an attack, hands its end to `expected`, and asks whether anything is left.
#[track_caller]
fn attack_with(source: &str, limits: Limits, expected: impl FnOnce(&Finished)) {
    let Some((sandbox, _turn)) = sandbox() else { return };
    let program = Program { source: source.into(), limits, ..Program::default() };
    let finished = sandbox.run(&program).unwrap();
    expected(&finished);
    nothing_remains();
    let after = sandbox.run(&Program { source: "print('fine')".into(), ..Program::default() }).unwrap();
    assert_eq!((after.status, &*after.stdout), (Status::Exit(0), &b"fine\n"[..]));
}

/// An attack that is refused: the program notices, says so, and ends in peace.
#[track_caller]
fn refused(source: &str) {
    attack_with(source, limits(), |finished| {
        let stderr = String::from_utf8_lossy(&finished.stderr);
        let stdout = String::from_utf8_lossy(&finished.stdout);
        assert_eq!((finished.status, &*stdout), (Status::Exit(0), "refused\n"), "{stderr}");
    });
}

/// The text of a program that tries each of `attempts` and prints `refused` when all raise an `OSError`.
fn all_raise(attempts: &str) -> String {
    format!(
        "import os, sys\nattempts = [\n{attempts}\n]\nfor number, attempt in enumerate(attempts):\n    try:\n        got = attempt()\n\
         \x20   except OSError:\n        continue\n    sys.exit(f'attempt {{number}} got {{got!r}}')\nprint('refused')\n"
    )
}

/// What was killed needs a moment to be gone.
#[track_caller]
fn nothing_remains() {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !children().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(children(), Vec::<String>::new(), "left behind");
}

/// Children of this process, and what became its children and is not dead.
fn children() -> Vec<String> {
    let own = std::process::id().to_string();
    // A stage that is killed cannot bury its own child.
    while let Ok(status) = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)) {
        if status == nix::sys::wait::WaitStatus::StillAlive {
            break;
        }
    }
    let stat = |entry: fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (name, rest) = stat.rsplit_once(')')?;
        (rest.split_whitespace().nth(1)? == own).then(|| name.to_owned())
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(stat).collect()
}

#[test]
fn an_ordinary_program_works() {
    let Some((sandbox, _turn)) = sandbox() else { return };
    let source = "import sys, json, math, re, threading, tempfile, collections, decimal, hashlib, random, datetime, signal
with tempfile.TemporaryFile() as file: file.write(b'x')
open('note', 'w').write('there')
done = threading.Event(); thread = threading.Thread(target=done.set); thread.start(); thread.join()
print(open('note').read(), sys.stdin.read(), done.is_set(), '가'); print('err', file=sys.stderr); sys.exit(3)";
    let stdin = b"in".to_vec();
    let finished = sandbox.run(&Program { source: source.into(), stdin, limits: limits() }).unwrap();
    assert_eq!(String::from_utf8_lossy(&finished.stdout), "there in True 가\n", "{finished:?}");
    assert_eq!((finished.status, &*finished.stderr), (Status::Exit(3), &b"err\n"[..]));
}

#[test]
fn large_input_and_output_pass_through() {
    let Some((sandbox, _turn)) = sandbox() else { return };
    let source = format!("# {}\nimport sys; sys.stdout.write(sys.stdin.read())", "x".repeat(300_000));
    let stdin = vec![b'y'; 900_000];
    let finished = sandbox.run(&Program { source, stdin: stdin.clone(), limits: limits() }).unwrap();
    assert_eq!((finished.status, finished.stdout == stdin), (Status::Exit(0), true));
}

#[test]
fn many_run_at_once() {
    let Some((sandbox, _turn)) = sandbox() else { return };
    std::thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                let source = format!("open('x', 'w').write('{number}'); print(open('x').read())");
                let finished = sandbox.run(&Program { source, stdin: Vec::new(), limits: limits() }).unwrap();
                assert_eq!(String::from_utf8_lossy(&finished.stdout), format!("{number}\n"));
            });
        }
    });
    nothing_remains();
}

#[test]
fn fork_bomb() {
    refused(&all_raise("os.fork, os.forkpty, lambda: os.posix_spawn('/usr/bin/true', ['true'], {})"));
    refused("import os\nif os.system('true') != 0: print('refused')");
    refused(
        "import subprocess, sys\ntry: subprocess.run([sys.executable, '-c', ''])\nexcept OSError: print('refused')",
    );
}

#[test]
fn thread_bomb() {
    let source = "import threading, time
threading.stack_size(1 << 16)
count = 0
try:
    while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); count += 1
except RuntimeError: print('refused' if count < 64 else count, flush=True)
import os; os._exit(0)";
    refused(source);
}

#[test]
fn memory_bomb() {
    refused("try: x = bytearray(8 << 30)\nexcept MemoryError: print('refused')");
    attack_with("x = []\nwhile True: x.append(bytes(1 << 20))", limits(), |finished| {
        assert_eq!(finished.status, Status::Exit(1), "{finished:?}");
    });
    // Anonymous files would count nowhere.
    refused(&all_raise("lambda: os.memfd_create('x')"));
}

#[test]
fn endless_output() {
    let small = Limits { output: 10_000, ..limits() };
    attack_with("while True: print('x' * 1000)", small.clone(), |finished| {
        assert_eq!((finished.status, finished.stdout.len()), (Status::OutputLimit, 10_000));
    });
    attack_with("import sys\nwhile True: sys.stderr.write('x' * 1000)", small, |finished| {
        assert_eq!((finished.status, finished.stderr.len()), (Status::OutputLimit, 10_000));
    });
}

#[test]
fn network() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    tcp.set_nonblocking(true).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let unix = UnixListener::bind(&path).unwrap();
    unix.set_nonblocking(true).unwrap();
    let port = tcp.local_addr().unwrap().port();
    refused(&all_raise(&format!(
        "lambda: __import__('socket').create_connection(('127.0.0.1', {port}), 2),
lambda: __import__('socket').socket(),
lambda: __import__('socket').socket(__import__('socket').AF_UNIX).connect({path:?}),
lambda: __import__('socket').socketpair(),
lambda: __import__('socket').getaddrinfo('example.com', 80),
lambda: __import__('urllib.request').request.urlopen('http://127.0.0.1:{port}'),"
    )));
    assert!(tcp.accept().is_err() && unix.accept().is_err());
}

#[test]
fn writing_outside() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("written");
    refused(&all_raise(&format!(
        "lambda: open({target:?}, 'w'), lambda: open('/written', 'w'), lambda: open('/usr/written', 'w'),
lambda: open('/tmp/written', 'w'), lambda: open('../written', 'w'), lambda: os.mkdir('/x'), lambda: open('/state/state', 'w'),
lambda: open(sys.executable, 'r+'), lambda: open(os.__file__, 'a'), lambda: os.chmod(os.__file__, 0o777),
lambda: os.unlink(os.__file__), lambda: os.link(os.__file__, '/box/link'), lambda: os.mkfifo('/box/fifo'),
lambda: (os.symlink('/usr/written', '/box/s'), open('/box/s', 'w')), lambda: os.chroot('/box'),"
    )));
    assert!(!target.exists());
}

#[test]
fn reading_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "the answer").unwrap();
    let home = std::env::var("HOME").unwrap_or("/root".into());
    let source = env!("CARGO_MANIFEST_DIR");
    refused(&all_raise(&format!(
        "lambda: open({secret:?}).read(), lambda: os.listdir({home:?} + '/.ssh'), lambda: os.listdir({source:?}),
lambda: os.listdir('/proc'), lambda: open('/proc/self/environ').read(), lambda: open('/proc/1/cmdline').read(),
lambda: os.listdir('/etc'), lambda: open('/etc/passwd').read(), lambda: os.listdir('/root'), lambda: os.listdir('/home'),
lambda: os.listdir('/'), lambda: open('/launcher', 'rb').read(4), lambda: open('/state/state').read(), lambda: os.listdir('/sys'),
lambda: os.listdir('/dev'), lambda: open('/dev/tty')"
    )));
}

#[test]
fn reading_what_the_harness_knows() {
    let Some((sandbox, turn)) = sandbox() else { return };
    assert!(sandbox.is_confined());
    drop(turn);
    refused(
        "import os, sys, inspect
names = sorted(os.environ)
known = {'HOME', 'LANG', 'LC_CTYPE', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'PATH', 'PYTHONHASHSEED', 'TMPDIR'}
assert set(names) <= known, names
assert sys.argv == ['/box/main.py'], sys.argv
assert len(inspect.stack()) == 1
open_fds = []
for fd in range(3, 64):
    try: os.fstat(fd); open_fds.append(fd)
    except OSError: pass
assert not open_fds, open_fds
assert os.listdir('.') == ['main.py'] and os.getpid() == 1 and os.getuid() == 65534
print('refused')",
    );
}

#[test]
fn other_processes() {
    refused(
        "import os, signal
for pid in [os.getppid(), 0, -1]:
    try: os.kill(pid, signal.SIGTERM)
    except OSError: pass
found = []
for pid in range(2, 40000):
    try: os.kill(pid, 0); found.append(pid)
    except OSError: pass
assert not found, found
print('refused')",
    );
    refused(&all_raise(
        "os.setsid, lambda: os.setpgid(0, 0), lambda: os.nice(-5), lambda: os.setuid(0), lambda: os.setgroups([0]),
lambda: os.sched_setaffinity(0, [0])",
    ));
}

#[test]
fn an_end_of_its_own_is_told_as_it_was() {
    let check = |source: &str, expected: Status| {
        attack_with(source, limits(), |finished| assert_eq!(finished.status, expected))
    };
    check("import sys; sys.exit(0); assert False", Status::Exit(0));
    check("import os; os._exit(121)", Status::Exit(121));
    check("raise SystemExit('no')", Status::Exit(1));
    check("import os; os.abort()", Status::Signal(11));
    check("import ctypes; ctypes.string_at(1)", Status::Signal(11));
}

#[test]
fn daemon() {
    let source = "import os, signal, threading, time
for name in ('SIGTERM', 'SIGHUP', 'SIGINT', 'SIGALRM', 'SIGPIPE'): signal.signal(getattr(signal, name), signal.SIG_IGN)
os.close(0); os.close(1); os.close(2)
threading.Thread(target=time.sleep, args=(1000,)).start()
time.sleep(1000)";
    let start = Instant::now();
    attack_with(source, Limits { wall: Duration::from_secs(1), ..limits() }, |finished| {
        assert_eq!(finished.status, Status::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    });
}

#[test]
fn deep_recursion() {
    attack_with("def f(): f()\nf()", limits(), |finished| assert_eq!(finished.status, Status::Exit(1)));
    let deep = "import sys; sys.setrecursionlimit(10**9)\ndef f(x): return f([x])\nf(0)";
    let small = Limits { memory: 256 << 20, ..limits() };
    attack_with(deep, small, |finished| assert_ne!(finished.status, Status::Exit(0)));
    let nested = "x = []\nfor _ in range(10**6): x = [x]\nprint(len(repr(x)))";
    attack_with(nested, limits(), |finished| assert_ne!(finished.status, Status::Exit(0)));
}

#[test]
fn direct_system_calls() {
    refused(
        "import ctypes, errno, platform
libc = ctypes.CDLL(None, use_errno=True)
x86 = platform.machine() == 'x86_64'
numbers = dict(
    fork=57 if x86 else None, vfork=58 if x86 else None, clone=56 if x86 else 220, clone3=435, ptrace=101 if x86 else 117,
    mount=165 if x86 else 40, unshare=272 if x86 else 97, setns=308 if x86 else 268, socket=41 if x86 else 198,
    keyctl=250 if x86 else 219, bpf=321 if x86 else 280, perf_event_open=298 if x86 else 241, io_uring_setup=425,
    kexec_load=246 if x86 else 104, reboot=169 if x86 else 142, process_vm_readv=310 if x86 else 270,
    process_vm_writev=311 if x86 else 271, pivot_root=155 if x86 else 41, memfd_create=319 if x86 else 279,
    prctl=157 if x86 else 167, userfaultfd=323 if x86 else 282, open_by_handle_at=304 if x86 else 265, pidfd_open=434,
    add_key=248 if x86 else 217, init_module=175 if x86 else 105, seccomp=317 if x86 else 277, personality=135 if x86 else 92,
    execveat=322 if x86 else 281, shmget=29 if x86 else 194, setrlimit_of_1000=302 if x86 else 261)
arguments = dict(clone=(17, 0, 0, 0, 0), prctl=(1, 0), unshare=(0x10000000,), setrlimit_of_1000=(1000, 0, 0, 0))
for name, number in numbers.items():
    if number is None: continue
    got = libc.syscall(number, *[ctypes.c_long(value) for value in arguments.get(name, (0, 0, 0, 0, 0, 0))])
    assert got == -1, (name, got)
    assert ctypes.get_errno() in (errno.ENOSYS, errno.EPERM, errno.ESRCH), (name, ctypes.get_errno())
if x86:
    got = libc.syscall(0x40000000 | 41, ctypes.c_long(2), ctypes.c_long(1), ctypes.c_long(0))
    assert got == -1
print('refused')",
    );
}

#[test]
fn another_program_in_its_place() {
    refused(&all_raise(
        "lambda: os.execv('/usr/bin/env', ['env']), lambda: os.execv('/bin/sh', ['sh', '-c', 'echo no']),
lambda: os.execv('/launcher', ['x', '__sandbox', '{}']),
lambda: (open('own', 'w').write('#!/bin/sh'), os.chmod('own', 0o755), os.execv('own', ['own']))",
    ));
}

#[test]
fn filling_the_folder() {
    let small = Limits { files: 8 << 20, ..limits() };
    let source = "import signal, os
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
total = 0
try:
    for number in range(1000):
        with open(str(number), 'wb') as file:
            for _ in range(16): total += file.write(bytes(1 << 20))
except OSError: pass
try:
    for number in range(100000): open(f'i{number}', 'w').close()
except OSError: print('refused' if total <= 9 << 20 else total)";
    attack_with(source, small, |finished| {
        assert_eq!(String::from_utf8_lossy(&finished.stdout), "refused\n", "{finished:?}");
    });
}

#[test]
fn descriptors_of_the_harness() {
    // A pipe whose writing end an unaware library left open to children.
    use std::os::fd::AsFd;
    let (mut reader, writer) = std::io::pipe().unwrap();
    let inherited = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
    nix::fcntl::fcntl(writer.as_fd(), inherited).unwrap();
    attack_with(
        "import os\nfor fd in range(3, 1024):\n    try: os.write(fd, b'forged')\n    except OSError: pass",
        limits(),
        |finished| assert_eq!(finished.status, Status::Exit(0)),
    );
    drop(writer);
    let mut read = String::new();
    reader.read_to_string(&mut read).unwrap();
    assert_eq!(read, "");
}

#[test]
fn a_launcher_that_is_none_is_named() {
    let error = Sandbox::builder().launcher("/bin/true").build().unwrap_err().to_string();
    assert!(error.contains("enter_if_launched"), "{error}");
    let error = Sandbox::builder().launcher("/no/such").build().unwrap_err().to_string();
    assert!(error.contains("/no/such"), "{error}");
}

#[test]
fn unconfined_programs_are_limited_and_ended() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let built = Sandbox::builder().launcher(env!("CARGO_BIN_EXE_kanana-sandbox")).unconfined().build();
    let sandbox = built.unwrap();
    assert!(!sandbox.is_confined());
    let limits = Limits { wall: Duration::from_secs(2), ..limits() };
    let check = |source: &str, expected: Status| {
        let finished = sandbox
            .run(&Program { source: source.into(), stdin: Vec::new(), limits: limits.clone() })
            .unwrap();
        assert_eq!(finished.status, expected, "{finished:?}");
    };
    check("import os, time\nif os.fork() == 0: time.sleep(30)\nelse: os._exit(7)", Status::Exit(7));
    check("import time; time.sleep(30)", Status::TimedOut);
    check("x = bytearray(8 << 30)", Status::Exit(1));
    check("while True: print('x' * 1000)", Status::OutputLimit);
    check(
        "import os; assert 'HOME' in os.environ and 'CARGO_MANIFEST_DIR' not in os.environ",
        Status::Exit(0),
    );
}
