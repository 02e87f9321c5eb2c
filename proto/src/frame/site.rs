//! Where the speaker of a hello computes.

use ::cluster::{Site, SiteDevice};

use crate::bounds::{MAX_SITE_CORES, MAX_SITE_GPUS, MAX_SITE_NAME_BYTES};
use crate::draft;
use crate::error::{WireError, at_most};

impl From<Site> for draft::Site {
    fn from(site: Site) -> Self {
        let device = match site.device {
            SiteDevice::Cores { cores, threads } => {
                Some(draft::site::Device::Cores(draft::Cores { cores: cores.into_iter().collect(), threads }))
            }
            SiteDevice::Gpus(gpus) => {
                Some(draft::site::Device::Gpus(draft::Gpus { names: gpus.into_iter().collect() }))
            }
            SiteDevice::Other => None,
        };
        Self { machine: site.machine, device }
    }
}

impl TryFrom<draft::Site> for Site {
    type Error = WireError;

    fn try_from(from: draft::Site) -> Result<Self, WireError> {
        if from.machine.is_empty() {
            return Err(WireError::invalid("hello.site.machine", "is empty"));
        }
        at_most("hello.site.machine", from.machine.len(), MAX_SITE_NAME_BYTES)?;
        let device = match from.device {
            Some(draft::site::Device::Cores(draft::Cores { cores, threads })) => {
                at_most("hello.site.cores", cores.len(), MAX_SITE_CORES)?;
                SiteDevice::Cores { cores: cores.into_iter().collect(), threads }
            }
            Some(draft::site::Device::Gpus(draft::Gpus { names })) => {
                at_most("hello.site.gpus", names.len(), MAX_SITE_GPUS)?;
                let longest = names.iter().map(String::len).max().unwrap_or(0);
                at_most("hello.site.gpus", longest, MAX_SITE_NAME_BYTES)?;
                SiteDevice::Gpus(names.into_iter().collect())
            }
            None => SiteDevice::Other,
        };
        Ok(Self { machine: from.machine, device })
    }
}
