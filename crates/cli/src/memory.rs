//! How much memory there is and how much was used, as Linux tells. Elsewhere nothing is known and nothing is refused.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that this process could still take before the machine or its control group (a container's limit) runs out.
///
/// Source: `MemAvailable` of proc(5); `memory.max`, `memory.current` and `inactive_file` of cgroup v2, or their v1
/// counterparts, of this process's group and the groups around it.
pub fn available() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| field_kib(&text, "MemAvailable:"));
    let groups = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| of_cgroups(&text, Path::new("/sys/fs/cgroup")));
    machine.into_iter().chain(groups).min()
}

/// Most bytes of this process that were ever in memory at once (`VmHWM` of proc(5)).
pub fn peak() -> Option<u64> {
    peak_of("self")
}

/// The same of another process, by its number. A process that has ended is known no more; and what `wait4` tells of it
/// then is at least the peak of whoever started it, whose memory it shared for a moment.
pub fn peak_of(process: &str) -> Option<u64> {
    field_kib(&fs::read_to_string(format!("/proc/{process}/status")).ok()?, "VmHWM:")
}

/// Forgets the peak so far, so that [`peak`] tells of what follows; does nothing where the system cannot.
///
/// Source: `/proc/pid/clear_refs`, value 5, of proc(5).
pub fn reset_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// The value of a `Name:  123 kB` line, in bytes.
fn field_kib(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The tightest room of the control groups listed in `/proc/self/cgroup`; `root` is where they are mounted.
fn of_cgroups(list: &str, root: &Path) -> Option<u64> {
    list.lines().filter_map(|line| of_hierarchy(line, root)).min()
}

fn of_hierarchy(line: &str, root: &Path) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (_number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (mount, limit, usage, reclaimable) = match controllers {
        "" => (root.to_path_buf(), "memory.max", "memory.current", "inactive_file "),
        names if names.split(',').any(|name| name == "memory") => {
            (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        }
        _ => return None,
    };
    // Inside a container the path may be the host's, and only the mount's own root exists.
    let folders = Path::new(path.trim_start_matches('/')).ancestors().map(|below| mount.join(below));
    folders
        .filter_map(|folder: PathBuf| {
            let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
            let statistics = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
            let cache = statistics
                .lines()
                .find_map(|line| line.strip_prefix(reclaimable)?.trim().parse::<u64>().ok());
            Some(
                (number(limit)?.saturating_sub(number(usage)?))
                    .saturating_add(cache.unwrap_or(0))
                    .min(number(limit)?),
            )
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let text = "MemTotal:  100 kB\nMemAvailable:    20 kB\nHugePages_Total:       0\n";
        assert_eq!(field_kib(text, "MemAvailable:"), Some(20 * 1024));
        assert_eq!(field_kib(text, "HugePages_Total:"), None);
        assert_eq!(field_kib(text, "Nothing:"), None);
    }

    #[test]
    fn the_tightest_group_counts_and_file_cache_can_be_had() {
        let root = tempfile::tempdir().unwrap();
        let write = |folder: &str, max: &str, current: &str, stat: &str| {
            let folder = root.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("memory.max"), max).unwrap();
            fs::write(folder.join("memory.current"), current).unwrap();
            fs::write(folder.join("memory.stat"), stat).unwrap();
        };
        write("a", "1000\n", "900\n", "anon 5\ninactive_file 50\n");
        write("a/b", "max\n", "100\n", "");
        assert_eq!(of_cgroups("0::/a/b\n", root.path()), Some(150));
        assert_eq!(of_cgroups("0::/elsewhere\n", root.path()), None);
        write("a/b", "400\n", "399\n", "inactive_file 600\n");
        assert_eq!(of_cgroups("0::/a/b\n", root.path()), Some(150));
        write("a/b", "90\n", "80\n", "inactive_file 600\n");
        assert_eq!(of_cgroups("0::/a/b\n", root.path()), Some(90), "no more than the limit");
    }

    #[test]
    fn this_process_is_known_on_linux() {
        if cfg!(target_os = "linux") {
            assert!(available().unwrap() > 0);
            assert!(peak().unwrap() > 100 * 1024);
        }
    }
}
