//! `crimux check --probe`: examines the backends.
//!
//! All backends are examined concurrently, each by itself, then what they must have in common. Findings name
//! known traps and what to do. Nothing is changed, and no crimux needs to run.

use std::path::Path;

use futures_util::future::join_all;

use crate::cli::finding::{Finding, Grade};
use crate::config::{Config, Endpoint};
use crate::cri::CgroupDriver;
use examine::Patient;

mod ask;
mod examine;

/// Where cAdvisor, which is built into kubelet, looks for containerd (`container/containerd/factory.go`).
const CADVISOR_CONTAINERD: &str = "/run/containerd/containerd.sock";
/// The ending by which kubelet recognises CRI-O (`pkg/kubelet/cadvisor/util.go`, `UsingLegacyCadvisorStats`).
const CRIO_ENDING: &str = "run/crio/crio.sock";

/// Examines all backends of a configuration.
pub(super) async fn all(config: &Config) -> Vec<Finding> {
    let examined = config.backends.iter().map(|(name, backend)| Patient::examine(config, name, backend));
    let mut patients = join_all(examined).await;
    let mut findings: Vec<_> = patients.iter_mut().flat_map(|patient| patient.findings.drain(..)).collect();
    findings.extend(cgroup_drivers(&patients));
    findings.extend(one_runtime_twice(&patients));
    findings.extend(cadvisor(config, &patients));
    findings.extend(patients.iter().flat_map(|patient| handlers(config, patient)));
    findings
}

/// kubelet is told one driver, the default backend's, and makes cgroups for all pods by it.
fn cgroup_drivers(patients: &[Patient<'_>]) -> Vec<Finding> {
    let local = || patients.iter().filter(|patient| patient.config.local);
    let told: Vec<_> = local().filter_map(|patient| Some((patient.name, patient.cgroup_driver?))).collect();
    let mut findings = Vec::new();
    let words: Vec<_> =
        told.iter().map(|(name, driver)| format!("{name} uses {}", driver_word(*driver))).collect();
    match told.first() {
        Some((_, first)) if told.iter().any(|(_, driver)| driver != first) => {
            let text = format!(
                "local backends differ: {}. kubelet is told one driver for all pods: set SystemdCgroup alike",
                words.join(", ")
            );
            findings.push(Finding::new(Grade::Error, "cgroup driver", text));
        }
        Some((_, first)) if told.len() > 1 => {
            let text = format!("{} for all of {} local backends", driver_word(*first), told.len());
            findings.push(Finding::new(Grade::Ok, "cgroup driver", text));
        }
        _ => {}
    }
    for silent in local().filter(|patient| patient.api.is_some() && patient.cgroup_driver.is_none()) {
        let text = "it does not tell its cgroup driver (containerd does from 2.0, CRI-O from 1.28); make sure that it is the others'";
        findings.push(Finding::new(Grade::Note, silent.name, text));
    }
    findings
}

fn driver_word(driver: CgroupDriver) -> &'static str {
    match driver {
        CgroupDriver::Systemd => "systemd",
        CgroupDriver::Cgroupfs => "cgroupfs",
    }
}

/// Two names for one socket list everything twice, and every ID is then a conflict.
fn one_runtime_twice(patients: &[Patient<'_>]) -> Vec<Finding> {
    let real = |patient: &Patient<'_>| match &patient.config.endpoint {
        Endpoint::Unix(path) => std::fs::canonicalize(path).ok(),
        _ => None,
    };
    let real: Vec<_> = patients.iter().map(|patient| (patient.name, real(patient))).collect();
    let pairs =
        real.iter().enumerate().flat_map(|(index, one)| real[..index].iter().map(move |other| (other, one)));
    let same = pairs.filter(|(other, one)| one.1.is_some() && other.1 == one.1);
    same.map(|(other, one)| {
        let text = format!("its endpoint is the same socket as that of {}: remove one of the two", other.0);
        Finding::new(Grade::Error, one.0, text)
    })
    .collect()
}

/// What cAdvisor and kubelet conclude from paths, whatever they are told.
fn cadvisor(config: &Config, patients: &[Patient<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let listens_as_crio = config.listen.to_string_lossy().ends_with(CRIO_ENDING);
    for patient in patients.iter().filter(|patient| patient.config.local) {
        let Endpoint::Unix(path) = &patient.config.endpoint else { continue };
        let runtime = patient.runtime_name.as_deref().unwrap_or_default();
        let at_fixed_path = resolves_to(path, Path::new(CADVISOR_CONTAINERD));
        if runtime == "containerd" && !at_fixed_path {
            let text = format!(
                "cAdvisor looks for containerd at {CADVISOR_CONTAINERD} alone: containers of this backend are \
                 without names and labels in /metrics/cadvisor"
            );
            findings.push(Finding::new(Grade::Note, patient.name, text));
        }
        if path.to_string_lossy().ends_with(CRIO_ENDING)
            && !listens_as_crio
            && patient.name == config.default_backend
        {
            let text = format!(
                "kubelet took stats from cAdvisor as long as its endpoint ended in {CRIO_ENDING}; behind crimux at \
                 {} it takes them from the CRI",
                config.listen.display()
            );
            findings.push(Finding::new(Grade::Note, patient.name, text));
        }
    }
    findings
}

fn resolves_to(path: &Path, fixed: &Path) -> bool {
    path == fixed || std::fs::canonicalize(path).ok().is_some_and(|real| real == fixed)
}

/// Compares what handlers ask of a backend with what it announces.
fn handlers(config: &Config, patient: &Patient<'_>) -> Vec<Finding> {
    let Some(announced) = patient.handlers.as_ref().filter(|announced| !announced.is_empty()) else {
        return Vec::new();
    };
    let asked = config.handlers.iter().flat_map(|(handler, targets)| {
        targets.iter().filter(|t| t.backend == patient.name).map(move |target| (handler, &target.handler))
    });
    let unknown = asked.filter(|(_, known_as)| !known_as.is_empty() && !announced.contains(*known_as));
    unknown
        .map(|(handler, known_as)| {
            let known: Vec<_> =
                announced.iter().filter(|name| !name.is_empty()).map(String::as_str).collect();
            let text = format!(
                "backend {} does not know the handler {known_as:?} (it announces: {})",
                patient.name,
                known.join(", ")
            );
            Finding::new(Grade::Error, format!("handlers.{handler}"), text)
        })
        .collect()
}
