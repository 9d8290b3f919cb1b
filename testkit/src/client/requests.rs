//! Short ways to write the long messages of the CRI.
//!
//! Defaults are what kubelet would send for an ordinary pod (labels and annotations included), so that a test
//! only says what it is about.

use std::collections::HashMap;

use crate::cri;

/// Describes a sandbox of the pod `name` in the namespace `default`, with a uid made from the name.
pub fn sandbox_config(name: &str) -> SandboxConfigBuilder {
    let metadata = cri::PodSandboxMetadata {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        namespace: "default".to_owned(),
        attempt: 0,
    };
    SandboxConfigBuilder {
        config: cri::PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.to_owned(),
            log_directory: format!("/var/log/pods/{name}"),
            linux: Some(cri::LinuxPodSandboxConfig::default()),
            ..Default::default()
        },
    }
}

/// The configuration of a sandbox in the making.
#[derive(Debug, Clone)]
pub struct SandboxConfigBuilder {
    config: cri::PodSandboxConfig,
}

impl SandboxConfigBuilder {
    /// Sets the namespace. Default: `default`.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.metadata().namespace);
        self
    }

    /// Sets the uid. Default: `uid-NAME`.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> Self {
        uid.clone_into(&mut self.metadata().uid);
        self
    }

    /// Sets the attempt. Default: 0.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.metadata().attempt = attempt;
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.config.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds labels.
    #[must_use]
    pub fn labels(mut self, labels: HashMap<String, String>) -> Self {
        self.config.labels.extend(labels);
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.config.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Ends with the configuration; kubelet's three pod labels are added.
    #[must_use]
    pub fn build(mut self) -> cri::PodSandboxConfig {
        let cri::PodSandboxMetadata { name, uid, namespace, .. } = self.metadata().clone();
        for (key, value) in [("name", name), ("uid", uid), ("namespace", namespace)] {
            self.config.labels.entry(format!("io.kubernetes.pod.{key}")).or_insert(value);
        }
        self.config
    }

    /// Ends with the request to run it under `handler`; `""` is no `RuntimeClass`.
    #[must_use]
    pub fn run(self, handler: &str) -> cri::RunPodSandboxRequest {
        cri::RunPodSandboxRequest { config: Some(self.build()), runtime_handler: handler.to_owned() }
    }

    fn metadata(&mut self) -> &mut cri::PodSandboxMetadata {
        self.config.metadata.get_or_insert_default()
    }
}

/// Describes a container `name` of `image`, which is an ID or a reference.
pub fn container_config(name: &str, image: &str) -> ContainerConfigBuilder {
    ContainerConfigBuilder {
        config: cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(image_spec(image)),
            command: vec!["/bin/sleep".into(), "1000".into()],
            labels: HashMap::from([("io.kubernetes.container.name".to_owned(), name.to_owned())]),
            log_path: format!("{name}/0.log"),
            linux: Some(cri::LinuxContainerConfig::default()),
            ..Default::default()
        },
    }
}

/// The configuration of a container in the making.
#[derive(Debug, Clone)]
pub struct ContainerConfigBuilder {
    config: cri::ContainerConfig,
}

impl ContainerConfigBuilder {
    /// Sets the attempt. Default: 0.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.config.metadata.get_or_insert_default().attempt = attempt;
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.config.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds labels.
    #[must_use]
    pub fn labels(mut self, labels: HashMap<String, String>) -> Self {
        self.config.labels.extend(labels);
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.config.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.config.envs.push(cri::KeyValue { key: key.to_owned(), value: value.as_bytes().to_vec() });
        self
    }

    /// Ends with the configuration.
    #[must_use]
    pub fn build(self) -> cri::ContainerConfig {
        self.config
    }

    /// Ends with the request to create it in a sandbox.
    #[must_use]
    pub fn create_in(self, sandbox_id: &str, sandbox: &cri::PodSandboxConfig) -> cri::CreateContainerRequest {
        cri::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(self.build()),
            sandbox_config: Some(sandbox.clone()),
        }
    }
}

/// An image by reference or ID and nothing else.
pub fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_owned(), ..Default::default() }
}
