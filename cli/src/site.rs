//! Where a rank computes: read from the system once, at the start, and told to whom it drafts for.

use std::collections::BTreeSet;

use cluster::{Site, SiteDevice};
use proto::bounds::{MAX_SITE_CORES, MAX_SITE_NAME_BYTES};
use rank::Device;

/// `threads`: those of a model on a CPU. `None`: the system has no name for the machine (it is Linux that has).
#[expect(clippy::disallowed_methods, reason = "the process edge")]
pub(crate) fn site(config: &rank::Config, threads: usize) -> Option<Site> {
    let read = |file| std::fs::read_to_string(file).ok();
    let machine = read("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let device = match &config.device {
        Device::Cpu => {
            let cores: BTreeSet<u32> = match &config.cores {
                Some(cores) => cores.iter().filter_map(|&core| u32::try_from(core).ok()).collect(),
                None => allowed(&read("/proc/self/status")?)?,
            };
            if cores.len() > MAX_SITE_CORES {
                return None;
            }
            SiteDevice::Cores { cores, threads: u32::try_from(threads).unwrap_or(u32::MAX) }
        }
        Device::Cuda(gpus) => {
            let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
            SiteDevice::Gpus(gpus.iter().map(|&gpu| name(visible.as_deref(), gpu)).collect())
        }
    };
    (1..=MAX_SITE_NAME_BYTES).contains(&machine.len()).then_some(Site { machine, device })
}

/// The cores that the system lets this process run on, listed as `0-3,8`.
fn allowed(status: &str) -> Option<BTreeSet<u32>> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cores = BTreeSet::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last.checked_sub(first)? as usize >= MAX_SITE_CORES {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(cores)
}

/// A GPU by the name that all processes of the machine have for it, not by its number among those that this one sees.
fn name(visible: Option<&str>, gpu: u32) -> String {
    let listed = visible.and_then(|list| list.split(',').nth(gpu as usize)).map(str::trim);
    let fits = |name: &&str| (1..=MAX_SITE_NAME_BYTES).contains(&name.len());
    listed.filter(fits).map_or_else(|| gpu.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allowed_cores_are_read() {
        let status =
            |list: &str| format!("Name:\tpaceline\nCpus_allowed:\tff\nCpus_allowed_list:\t{list}\nx:\t1\n");
        for (list, expected) in [
            ("0", Some(vec![0])),
            ("0-3", Some(vec![0, 1, 2, 3])),
            ("1,4-5,9", Some(vec![1, 4, 5, 9])),
            ("3-1", None),
            ("0-4294967295", None),
            ("all", None),
            ("", None),
        ] {
            let expected = expected.map(|cores| cores.into_iter().collect());
            assert_eq!(allowed(&status(list)), expected, "{list:?}");
        }
        assert_eq!(allowed("Name:\tpaceline\n"), None);
    }

    #[test]
    fn gpus_are_named_alike_by_processes_that_see_others() {
        for (visible, gpu, expected) in [
            (None, 1, "1"),
            (Some("2,3"), 0, "2"),
            (Some("2, 3"), 1, "3"),
            (Some("GPU-8f2a,GPU-91bc"), 1, "GPU-91bc"),
            (Some(""), 0, "0"),
            (Some("5"), 7, "7"),
        ] {
            assert_eq!(name(visible, gpu), expected, "{visible:?} {gpu}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn two_ranks_of_this_machine_are_near_and_pinned_apart_they_share_nothing() {
        use cluster::Nearness;
        let rank = |cores: Option<Vec<usize>>, threads| {
            site(&rank::Config { cores, ..rank::Config::default() }, threads)
        };
        let many = 1 << 20;
        let near = |one: Option<Site>, two: Option<Site>| Nearness::between(one.as_ref(), two.as_ref());
        assert_eq!(near(rank(None, many), rank(None, 1)), Nearness::Colocated);
        assert_eq!(near(rank(Some(vec![0]), 1), rank(Some(vec![0]), 1)), Nearness::Colocated);
        assert_eq!(near(rank(Some(vec![0]), 1), rank(Some(vec![1]), 1)), Nearness::SameNode);
        let gpu = rank::Config { device: "cuda:0".parse().unwrap(), ..rank::Config::default() };
        assert_eq!(near(site(&gpu, 1), rank(None, many)), Nearness::SameNode);
    }
}
