//! The walls: namespaces and mounts of the outer stage, Landlock and seccomp of the inner one.
//!
//! Two ways lead to the same place. An unprivileged user makes a user namespace first and owns everything inside it. Root makes the
//! other namespaces with its own rights (so that an interpreter below `/root` can be shown), and the inner stage becomes `nobody` in
//! a user namespace of its own: limits of processes do not hold for root.
//! Sources: namespaces(7), user_namespaces(7), pivot_root(2), landlock(7).

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{getegid, geteuid, pivot_root, sethostname, setsid};

use super::stage::{Outcome, Plan, Stage, Step, limit, part, python, receive};
use super::{ENTRY, UNSAFE_CODE, seccomp, within};

/// `nobody`: the user inside, and, for root, outside too.
const NOBODY: u32 = 65534;
/// The program's folder.
const BOX: &str = "/box";
/// Where the inner stage says how far it came; Landlock hides it from the program.
const STATE: &str = "/state/state";
/// What [`STATE`] holds once nothing but the program's own doing can follow.
const RUNNING: &str = "running";
/// This program, inside.
const LAUNCHER: &str = "/launcher";
/// The system's libraries where they are no part of `/usr`, and what finds them.
const LIBRARIES: [&str; 8] =
    ["/lib", "/lib64", "/lib32", "/bin", "/nix/store", "/gnu/store", "/etc/ld.so.cache", "/etc/alternatives"];
const DEVICES: [&str; 3] = ["/dev/null", "/dev/zero", "/dev/urandom"];

/// Builds the place, runs the inner stage in it and writes how it ended.
pub(super) fn outer(plan: Plan) -> Step<()> {
    let mut outcome = File::create(&plan.outcome).map_err(part(plan.outcome.display()))?;
    let ended = build(&plan).and_then(|()| launch(&plan)).unwrap_or_else(Outcome::Setup);
    let ended = serde_json::to_string(&ended).map_err(part("outcome"))?;
    outcome.write_all(ended.as_bytes()).map_err(part("outcome"))
}

fn build(plan: &Plan) -> Step<()> {
    // The thread that started this one waits for it.
    set_pdeathsig(Signal::SIGKILL).map_err(part("parent-death signal"))?;
    namespaces()?;
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(part("private mounts"))?;
    tmpfs(&plan.place, "mode=755,size=1m")?;
    for path in readable(plan) {
        show(&plan.place, &path, MsFlags::MS_NODEV)?;
    }
    for device in DEVICES {
        show(&plan.place, Path::new(device), MsFlags::MS_NOEXEC)?;
    }
    bind(&plan.launcher, &inside(&plan.place, Path::new(LAUNCHER)), MsFlags::MS_NODEV)?;
    for (folder, size) in [(BOX, plan.limits.files), ("/state", 1 << 16)] {
        let folder = inside(&plan.place, Path::new(folder));
        fs::create_dir(&folder).map_err(part(folder.display()))?;
        tmpfs(&folder, &format!("mode=700,uid={NOBODY},gid={NOBODY},size={size},nr_inodes=4096"))?;
    }
    std::env::set_current_dir(&plan.place).map_err(part("new root"))?;
    pivot_root(".", ".").map_err(part("pivot_root"))?;
    // The old root lies on top of the new one, at the same place.
    umount2(".", MntFlags::MNT_DETACH).map_err(part("old root"))?;
    std::env::set_current_dir("/").map_err(part("new root"))?;
    read_only(Path::new("/"), MsFlags::MS_NODEV)?;
    sethostname("sandbox").map_err(part("host name"))
}

fn namespaces() -> Step<()> {
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    let (user, group) = (geteuid(), getegid());
    if user.is_root() && nobody_exists() {
        return unshare(flags).map_err(|error| {
            format!(
                "namespaces: {error}: root needs CAP_SYS_ADMIN here (containers take it away); {UNSAFE_CODE}"
            )
        });
    }
    unshare(flags | CloneFlags::CLONE_NEWUSER).map_err(|error| {
        format!(
            "user namespaces: {error}: allow them (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
             the container's seccomp profile); {UNSAFE_CODE}"
        )
    })?;
    let map = |file: &str, line: String| fs::write(format!("/proc/self/{file}"), line).map_err(part(file));
    map("setgroups", "deny".into())?;
    map("uid_map", format!("{NOBODY} {user} 1"))?;
    map("gid_map", format!("{NOBODY} {group} 1"))
}

/// Not so for a root of a user namespace that maps it alone: that one is no more than a user. (Where it is the machine's root in
/// disguise, threads are bounded by memory only.)
fn nobody_exists() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map_while(|number| number.parse::<u64>().ok());
        let (Some(first), Some(_), Some(count)) = (numbers.next(), numbers.next(), numbers.next()) else {
            return false;
        };
        (first..first.saturating_add(count)).contains(&u64::from(NOBODY))
    })
}

fn tmpfs(path: &Path, options: &str) -> Step<()> {
    let flags = MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | if path.ends_with("box") { MsFlags::MS_NOEXEC } else { MsFlags::empty() };
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options)).map_err(|error| {
        // Ubuntu gives the namespace and takes every right in it.
        let hint = "where sysctl kernel.apparmor_restrict_unprivileged_userns is 1, set it to 0 or write an AppArmor profile";
        format!("mount of a tmpfs: {error}: {hint}; {UNSAFE_CODE}")
    })
}

/// What the program can read: the interpreter's home and the system's libraries, no path inside another.
fn readable(plan: &Plan) -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::from("/usr")];
    let more = plan.interpreter.prefixes.iter().cloned().chain(LIBRARIES.map(PathBuf::from));
    for path in more {
        if !within(&path, &paths) && path.symlink_metadata().is_ok() {
            paths.push(path);
        }
    }
    paths
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Makes a path of the system visible at the same place below the new root.
fn show(root: &Path, path: &Path, flags: MsFlags) -> Step<()> {
    let target = inside(root, path);
    // Merged systems have /lib and its like as links into /usr.
    if let Ok(link) = fs::read_link(path) {
        return symlink(link, &target).map_err(part(path.display()));
    }
    bind(path, &target, flags)
}

fn bind(source: &Path, target: &Path, flags: MsFlags) -> Step<()> {
    let made = if source.is_dir() {
        fs::create_dir_all(target)
    } else {
        let folder = target.parent().map_or(Ok(()), fs::create_dir_all);
        folder.and_then(|()| File::create(target).map(drop))
    };
    made.map_err(part(target.display()))?;
    let kind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), target, None::<&str>, kind, None::<&str>).map_err(part(source.display()))?;
    read_only(target, flags)
}

/// Mounts below `path` stay as they are: Landlock is over them.
fn read_only(path: &Path, flags: MsFlags) -> Step<()> {
    let now = statvfs(path).map_err(part(path.display()))?.flags();
    // In a user namespace, what a mount forbids it must go on forbidding.
    let kept = [
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let kept = kept.into_iter().filter(|&(flag, _)| now.contains(flag)).map(|(_, flag)| flag);
    let change = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
    let all = kept.fold(change | flags, |all, flag| all | flag);
    mount(None::<&str>, path, None::<&str>, all, None::<&str>)
        .map_err(part(format!("read-only {}", path.display())))
}

fn launch(plan: &Plan) -> Step<Outcome> {
    let inner = Plan { stage: Stage::Inner, ..plan.clone() };
    let inner = serde_json::to_string(&inner).map_err(part("plan"))?;
    let mut command = Command::new(LAUNCHER);
    command.args([ENTRY, &inner]).env_clear().current_dir(BOX);
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let hint = "the launcher must be readable and executable by all, with its libraries in /usr or /lib";
    let started = command.spawn();
    let mut started = started.map_err(|error| format!("{}: {error}: {hint}", plan.launcher.display()))?;
    let status = started.wait().map_err(part("inner stage"))?;
    match fs::read_to_string(STATE) {
        Ok(state) if state == RUNNING => Ok(program(status)),
        Ok(state) if !state.is_empty() => Err(state),
        _ => Err(format!("the inner stage did not start ({status}): {hint}")),
    }
}

fn program(status: ExitStatus) -> Outcome {
    match status.code() {
        Some(code) => Outcome::Exit(code),
        None => Outcome::Signal(status.signal().unwrap_or_default()),
    }
}

/// Gives up every right and becomes Python; says in [`STATE`] how far it came.
pub(super) fn inner(plan: &Plan) -> Step<()> {
    let state = File::options().write(true).create_new(true).mode(0o600).open(STATE);
    let mut state = state.map_err(part(STATE))?;
    // This returns only with a problem: otherwise the process is Python, and the descriptor is closed.
    let Err(problem) = become_python(plan, &mut state);
    let rewritten =
        state.rewind().and_then(|()| state.set_len(0)).and_then(|()| state.write_all(problem.as_bytes()));
    rewritten.map_err(part(problem))
}

fn become_python(plan: &Plan, state: &mut File) -> Step<Infallible> {
    // Threads are counted for each user of each namespace: here this one program is all of them.
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| {
        format!("user namespaces: {error}: allow them (sysctl user.max_user_namespaces); {UNSAFE_CODE}")
    })?;
    // Its parent's end is its own, from here on; until the new session it is in the group that the harness kills.
    set_pdeathsig(Signal::SIGKILL).map_err(part("parent-death signal"))?;
    setsid().map_err(part("session"))?;
    let folder = Path::new(BOX);
    let main = receive(plan, folder)?;
    limit(&plan.limits)?;
    let threads = plan.limits.threads;
    setrlimit(Resource::RLIMIT_NPROC, threads, threads).map_err(part("limit of threads"))?;
    landlock(plan).map_err(|error| format!("Landlock: {error}; {UNSAFE_CODE}"))?;
    seccomp::apply().map_err(|error| format!("seccomp: {error}; {UNSAFE_CODE}"))?;
    state.write_all(RUNNING.as_bytes()).map_err(part(STATE))?;
    Err(part(plan.interpreter.executable.display())(python(plan, folder, &main).exec()))
}

/// Files by path, no network, no signal to the outside, with whatever of that this kernel's Landlock has; it must have some.
fn landlock(plan: &Plan) -> Step<()> {
    let abi = ABI::V6;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let nodes = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock | AccessFs::MakeFifo;
    let own = AccessFs::from_all(abi) & !(nodes | AccessFs::Execute | AccessFs::IoctlDev);
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
        .and_then(|rules| rules.scope(Scope::from_all(abi)))
        .and_then(|rules| rules.create());
    let mut rules = ruleset.map_err(|error| error.to_string())?;
    for path in readable(plan) {
        rules = allow(rules, &path, read)?;
    }
    for device in DEVICES {
        rules = allow(rules, Path::new(device), AccessFs::ReadFile | AccessFs::WriteFile)?;
    }
    for program in plan.loader.iter().chain([&plan.interpreter.executable]) {
        rules = allow(rules, program, AccessFs::ReadFile | AccessFs::Execute)?;
    }
    rules = allow(rules, Path::new(BOX), own)?;
    let status = rules.restrict_self().map_err(|error| error.to_string())?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err("this kernel has none (it takes Linux 5.13 with landlock among the LSMs)".into());
    }
    Ok(())
}

fn allow(rules: RulesetCreated, path: &Path, mut access: BitFlags<AccessFs>) -> Step<RulesetCreated> {
    let opened = PathFd::new(path).map_err(|error| error.to_string())?;
    if !path.is_dir() {
        access &= AccessFs::from_file(ABI::V6);
    }
    rules.add_rule(PathBeneath::new(opened, access)).map_err(|error| format!("{}: {error}", path.display()))
}
