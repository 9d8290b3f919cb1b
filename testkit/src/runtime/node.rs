//! What a runtime says of itself, and what is told to it: Version, Status, `RuntimeConfig`.
//!
//! These answers hold for the node, not for a pod; a multiplexer composes its own from several of them.

use tonic::Status;

use super::state::State;
use crate::cri;

impl State {
    /// Sets a condition of `Status`, such as `NetworkReady`.
    pub fn set_condition(&mut self, name: &str, ready: bool, reason: &str) {
        self.conditions.retain(|condition| condition.r#type != name);
        self.conditions.push(cri::RuntimeCondition {
            r#type: name.to_owned(),
            status: ready,
            reason: reason.to_owned(),
            message: String::new(),
        });
    }

    pub(crate) fn version(&self, api: &str) -> cri::VersionResponse {
        cri::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: self.name.clone(),
            runtime_version: self.abilities.runtime_version.clone(),
            runtime_api_version: api.to_owned(),
        }
    }

    pub(crate) fn status(&self, request: cri::StatusRequest) -> cri::StatusResponse {
        let features =
            cri::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: true };
        let names = std::iter::once("").chain(self.abilities.handlers.iter().map(String::as_str));
        let mut response = cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions: self.conditions.clone() }),
            runtime_handlers: names
                .map(|name| cri::RuntimeHandler { name: name.to_owned(), features: Some(features) })
                .collect(),
            features: self.abilities.features,
            ..Default::default()
        };
        if request.verbose {
            let config = serde_json::json!({ "name": self.name, "handlers": self.abilities.handlers });
            response.info.insert("config".into(), config.to_string());
        }
        response
    }

    pub(crate) fn runtime_config(&self) -> Result<cri::RuntimeConfigResponse, Status> {
        let driver = self
            .abilities
            .cgroup_driver
            .ok_or_else(|| Status::unimplemented("method RuntimeConfig not implemented"))?;
        let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
        Ok(cri::RuntimeConfigResponse { linux: Some(linux) })
    }

    pub(crate) fn update_runtime_config(&mut self, request: cri::UpdateRuntimeConfigRequest) {
        let network = request.runtime_config.and_then(|config| config.network_config);
        self.pod_cidr = network.map(|network| network.pod_cidr);
    }
}
