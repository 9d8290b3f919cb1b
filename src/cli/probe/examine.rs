//! Examines one backend.
//!
//! The order is that in which things fail: files, connection, API, health. What later steps need is kept;
//! what an operator should know is a finding.

use std::time::{Duration, SystemTime};

use prost::Message;
use tonic::Code;

use crate::backend::connect::Connector;
use crate::backend::tls::{CertificateInfo, CertificateRole};
use crate::cli::finding::{Finding, Grade};
use crate::cli::probe::ask::{Conversation, ProbeReply};
use crate::config::{BackendConfig, Config, RelayMode};
use crate::cri::{CgroupDriver, RuntimeConfigResponse, StatusResponse, VersionResponse};
use crate::merge::status::NODE_CONDITIONS;
use crate::method::{Api, Rpc};

/// How long before its end a certificate is warned about.
const SOON: Duration = Duration::from_secs(30 * 86400);

/// One backend, examined.
pub(super) struct Patient<'a> {
    pub(super) name: &'a str,
    pub(super) config: &'a BackendConfig,
    pub(super) findings: Vec<Finding>,
    /// The API that it speaks; none if it cannot be spoken to.
    pub(super) api: Option<Api>,
    pub(super) runtime_name: Option<String>,
    pub(super) cgroup_driver: Option<CgroupDriver>,
    /// Whether it has `PodSandboxStats`.
    pub(super) pod_stats: Option<bool>,
    /// The handlers that it announces; an old runtime announces none.
    pub(super) handlers: Option<Vec<String>>,
    /// Whether the node is NotReady without it.
    decides: bool,
}

impl<'a> Patient<'a> {
    pub(super) async fn examine(node: &Config, name: &'a str, config: &'a BackendConfig) -> Self {
        let mut patient = Self {
            name,
            config,
            findings: Vec::new(),
            api: None,
            runtime_name: None,
            cgroup_driver: None,
            pod_stats: None,
            handlers: None,
            decides: config.required || node.default_backend == name,
        };
        if let Err(why) = patient.examination().await {
            patient.find(Grade::Error, why);
        }
        if !config.local {
            patient.limits_of_remote();
        }
        patient
    }

    fn find(&mut self, grade: Grade, text: impl Into<String>) {
        self.findings.push(Finding::new(grade, self.name, text));
    }

    async fn examination(&mut self) -> Result<(), String> {
        let connector = Connector::new(self.config).map_err(|error| error.to_string())?;
        let certificates = connector.describe_tls().map_err(|error| error.to_string())?;
        for certificate in &certificates {
            self.certificate(certificate, SystemTime::now());
        }
        let mut conversation = Conversation::open(&connector).await?;
        if let Some(certificate) = &conversation.shown {
            self.certificate(certificate, SystemTime::now());
        }
        self.version(&mut conversation, connector.target()).await?;
        self.cgroup_driver(&mut conversation).await?;
        self.pod_stats(&mut conversation).await?;
        self.status(&mut conversation).await
    }

    fn certificate(&mut self, certificate: &CertificateInfo, now: SystemTime) {
        let whose = match certificate.role {
            CertificateRole::Authority => "authority",
            CertificateRole::Client => "our certificate",
            CertificateRole::Backend => "its certificate",
        };
        let (grade, what) = if certificate.not_after < now {
            // Another authority of the file may be the one that counts; connecting tells.
            let grade =
                if certificate.role == CertificateRole::Authority { Grade::Warning } else { Grade::Error };
            (grade, "has expired")
        } else if certificate.not_before > now {
            (Grade::Error, "is not valid yet")
        } else if certificate.not_after < now + SOON {
            (Grade::Warning, "expires within 30 days")
        } else {
            (Grade::Ok, "is valid")
        };
        self.find(grade, format!("{whose} {what}: {certificate}"));
    }

    async fn version(&mut self, conversation: &mut Conversation, target: &str) -> Result<(), String> {
        for api in [Api::V1, Api::V1Alpha2] {
            match conversation.ask(Rpc::Version, api, &[]).await? {
                ProbeReply::Message(reply) => {
                    let version = VersionResponse::decode(reply).map_err(|error| error.to_string())?;
                    let VersionResponse { runtime_name, runtime_version, .. } = version;
                    let text = format!("{target} is {runtime_name} {runtime_version}, CRI {}", api.version());
                    self.find(Grade::Ok, text);
                    self.api = Some(api);
                    self.runtime_name = Some(runtime_name);
                    break;
                }
                ProbeReply::Code(Code::Unimplemented) => {}
                ProbeReply::Code(code) => return Err(format!("Version was answered with {code:?}")),
            }
        }
        match (self.api, self.runtime_name.as_deref()) {
            (None, _) => {
                Err("it speaks neither runtime.v1 nor runtime.v1alpha2; is it a CRI socket?".to_owned())
            }
            (_, Some("crimux")) => {
                Err("this is a crimux, perhaps itself: a backend is a container runtime".to_owned())
            }
            (Some(Api::V1Alpha2), _) => {
                let text =
                    "it speaks only v1alpha2: crimux translates, but features of v1 are missing; upgrade it";
                self.find(Grade::Warning, text);
                Ok(())
            }
            (Some(Api::V1), _) => Ok(()),
        }
    }

    async fn cgroup_driver(&mut self, conversation: &mut Conversation) -> Result<(), String> {
        let Some(api) = self.api else { return Ok(()) };
        if let ProbeReply::Message(reply) = conversation.ask(Rpc::RuntimeConfig, api, &[]).await? {
            let config = RuntimeConfigResponse::decode(reply).map_err(|error| error.to_string())?;
            self.cgroup_driver = config.linux.map(|linux| linux.cgroup_driver());
        }
        Ok(())
    }

    /// Asks as kubelet does: for the sandbox with the empty ID.
    async fn pod_stats(&mut self, conversation: &mut Conversation) -> Result<(), String> {
        let Some(api) = self.api else { return Ok(()) };
        let answer = conversation.ask(Rpc::PodSandboxStats, api, &[]).await?;
        self.pod_stats = Some(!matches!(answer, ProbeReply::Code(Code::Unimplemented)));
        Ok(())
    }

    async fn status(&mut self, conversation: &mut Conversation) -> Result<(), String> {
        let Some(api) = self.api else { return Ok(()) };
        let status = match conversation.ask(Rpc::Status, api, &[]).await? {
            ProbeReply::Message(reply) => StatusResponse::decode(reply).map_err(|error| error.to_string())?,
            ProbeReply::Code(code) => return Err(format!("Status was answered with {code:?}")),
        };
        for condition in status.status.iter().flat_map(|status| &status.conditions).filter(|c| !c.status) {
            let grade = match (NODE_CONDITIONS.contains(&condition.r#type.as_str()), self.decides) {
                (true, true) => Grade::Error,
                (true, false) => Grade::Warning,
                // Such as containerd's ContainerdHasNoDeprecationWarnings: the node is Ready all the same.
                (false, _) => Grade::Note,
            };
            self.find(
                grade,
                format!("{} is false: {} {}", condition.r#type, condition.reason, condition.message),
            );
        }
        let handlers: Vec<_> = status.runtime_handlers.into_iter().map(|handler| handler.name).collect();
        if handlers.is_empty() {
            self.find(Grade::Note, "it does not announce its handlers, so they cannot be compared");
        }
        self.handlers = Some(handlers);
        Ok(())
    }

    /// What kubelet does with files and addresses of a node does not reach another one.
    fn limits_of_remote(&mut self) {
        let files = "it is not local: kubectl logs and log rotation need /var/log/pods shared at the same path (virtiofs, NFS)";
        self.find(Grade::Note, files);
        let mounts = "it is not local: hostPath, ConfigMaps, Secrets and tokens need /var/lib/kubelet/pods shared at the same path, and hostPort opens ports there, not here";
        self.find(Grade::Note, mounts);
        if self.config.streaming.relay != RelayMode::Never && self.config.streaming.address.is_none() {
            let streams = "exec, attach and port-forward: its streaming server must listen where this node can dial it. For \
                           containerd set stream_server_address (not 127.0.0.1) and stream_server_port in its CRI section, \
                           and streaming.address here";
            self.find(Grade::Note, streams);
        }
    }
}
