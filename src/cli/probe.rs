//! `crimux check --probe`: examines the backends.
//!
//! All backends are examined concurrently, each by itself, then what they must have in common. Findings name
//! known traps and what to do. Nothing is changed, and no crimux needs to run.

use std::path::Path;

use futures_util::future::join_all;

use crate::cli::finding::{Finding, Grade};
use crate::config::{self, Config, Endpoint, StatsPolicy};
use crate::cri::CgroupDriver;
use examine::Patient;

mod ask;
mod examine;

/// Where cAdvisor, which is built into kubelet, looks for containerd (`container/containerd/factory.go`).
const CADVISOR_CONTAINERD: &str = "/run/containerd/containerd.sock";
/// Where cAdvisor looks for CRI-O, over HTTP/1.1 (`container/crio/client.go`).
const CADVISOR_CRIO: &str = "/var/run/crio/crio.sock";
/// The ending by which kubelet recognises CRI-O (`pkg/kubelet/cadvisor/util.go`, `UsingLegacyCadvisorStats`).
const CRIO_ENDING: &str = "run/crio/crio.sock";

/// Examines all backends of a configuration.
pub(super) async fn all(config: &Config) -> Vec<Finding> {
    let examined = config.backends.iter().map(|(name, backend)| Patient::examine(config, name, backend));
    let mut patients = join_all(examined).await;
    let mut findings: Vec<_> = patients.iter_mut().flat_map(|patient| patient.findings.drain(..)).collect();
    findings.extend(cgroup_drivers(config, &patients));
    findings.extend(pod_stats(config, &patients));
    findings.extend(one_runtime_twice(&patients));
    findings.extend(cadvisor(config, &patients));
    findings.extend(patients.iter().flat_map(|patient| handlers(config, patient)));
    findings
}

/// kubelet is told one driver, the default backend's, and makes cgroups for all pods by it.
fn cgroup_drivers(config: &Config, patients: &[Patient<'_>]) -> Vec<Finding> {
    let local = || patients.iter().filter(|patient| patient.config.local);
    let told = local().filter_map(|patient| Some((patient.name, patient.cgroup_driver?)));
    let configured = config.cgroup_driver.map(|driver| match driver {
        config::CgroupDriver::Systemd => ("the key cgroup_driver", CgroupDriver::Systemd),
        config::CgroupDriver::Cgroupfs => ("the key cgroup_driver", CgroupDriver::Cgroupfs),
    });
    let told: Vec<_> = configured.into_iter().chain(told).collect();
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
            let count = told.len() - usize::from(config.cgroup_driver.is_some());
            let text = format!("{} for all of {count} local backends that tell theirs", driver_word(*first));
            findings.push(Finding::new(Grade::Ok, "cgroup driver", text));
        }
        _ => {}
    }
    for silent in local().filter(|patient| patient.api.is_some() && patient.cgroup_driver.is_none()) {
        let text = "it does not tell its cgroup driver (containerd does from 2.0, CRI-O from 1.28); make sure that it is the others'";
        findings.push(Finding::new(Grade::Note, silent.name, text));
        if silent.name == config.default_backend && config.cgroup_driver.is_none() {
            let text = "the default backend has no RuntimeConfig: kubelet up to 1.37 uses its own cgroupDriver, kubelet \
                        1.38 and kubeadm's preflight ask for it: set cgroup_driver to the driver that it uses";
            findings.push(Finding::new(Grade::Warning, silent.name, text));
        }
    }
    findings
}

/// Under the gate `PodAndContainerStatsFromCRI` kubelet takes the stats of all pods from one source.
fn pod_stats(config: &Config, patients: &[Patient<'_>]) -> Vec<Finding> {
    let lacking: Vec<_> = patients.iter().filter(|patient| patient.pod_stats == Some(false)).collect();
    if lacking.is_empty() || patients.iter().all(|patient| patient.pod_stats != Some(true)) {
        return Vec::new();
    }
    let text = match config.pod_sandbox_stats {
        StatsPolicy::Unimplemented => {
            "it has no PodSandboxStats and keeps them from being offered (pod_sandbox_stats: unimplemented): kubelet's \
             gate PodAndContainerStatsFromCRI then takes the stats of all pods from cAdvisor"
        }
        StatsPolicy::Union => {
            "it has no PodSandboxStats: under kubelet's gate PodAndContainerStatsFromCRI its pods have no stats \
             (pod_sandbox_stats: union)"
        }
    };
    lacking.into_iter().map(|patient| Finding::new(Grade::Note, patient.name, text)).collect()
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
    if resolves_to(&config.listen, Path::new(CADVISOR_CRIO))
        || config.listen == Path::new("/run/crio/crio.sock")
    {
        let text = format!(
            "cAdvisor dials {CADVISOR_CRIO} and speaks HTTP/1.1 to CRI-O there: crimux must listen at another path, \
             such as /run/crimux/{CRIO_ENDING}"
        );
        findings.push(Finding::new(Grade::Error, "listen", text));
    }
    for patient in patients.iter().filter(|patient| patient.config.local) {
        let Endpoint::Unix(path) = &patient.config.endpoint else { continue };
        let runtime = patient.runtime_name.as_deref().unwrap_or_default();
        let at_fixed_path = resolves_to(path, Path::new(CADVISOR_CONTAINERD));
        if runtime == "cri-o" && !resolves_to(path, Path::new(CADVISOR_CRIO)) {
            let text = format!(
                "cAdvisor looks for CRI-O at {CADVISOR_CRIO} alone: containers of this backend are without names and \
                 labels in /metrics/cadvisor"
            );
            findings.push(Finding::new(Grade::Note, patient.name, text));
        }
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
                 {} it takes them from the CRI. To keep the old way leave CRI-O where it is, because cAdvisor dials \
                 {CADVISOR_CRIO} itself, and let crimux listen at another path with that ending",
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
///
/// containerd and CRI-O announce every handler that they serve, so they refuse one that they do not announce.
/// Others may serve it: cri-dockerd takes `docker` and announces nothing of the kind.
fn handlers(config: &Config, patient: &Patient<'_>) -> Vec<Finding> {
    let announces_all = matches!(patient.runtime_name.as_deref(), Some("containerd" | "cri-o"));
    let grade = if announces_all { Grade::Error } else { Grade::Warning };
    let Some(announced) = patient.handlers.as_ref().filter(|announced| !announced.is_empty()) else {
        return Vec::new();
    };
    let keys = config.handlers.iter().map(|(handler, targets)| (format!("handlers.{handler}"), targets));
    let keys = keys.chain([("default_split".to_owned(), &config.default_split)]);
    let asked = keys.flat_map(|(key, targets)| {
        let here = targets.iter().filter(|target| target.backend == patient.name);
        here.map(|target| (key.clone(), &target.backend_handler)).collect::<Vec<_>>()
    });
    let unknown = asked.filter(|(_, known_as)| !known_as.is_empty() && !announced.contains(*known_as));
    unknown
        .map(|(key, known_as)| {
            let known: Vec<_> =
                announced.iter().filter(|name| !name.is_empty()).map(String::as_str).collect();
            let text = format!(
                "backend {} does not {} the handler {known_as:?} (it announces: {})",
                patient.name,
                if announces_all { "know" } else { "announce" },
                known.join(", ")
            );
            Finding::new(grade, key, text)
        })
        .collect()
}
