//! The image calls of kubelet 1.36, in its order, for one container start at a time.
//!
//! kubelet decides by what each call answers, so a test of image routing has to decide in the same way.
//! Source: `images/image_manager.go EnsureImageExists`, `kuberuntime_container.go startContainer`,
//! `helpers.go getImageUser`; the order was recorded from a real kubelet.

// Each binary that shares this uses a part of it, and shows failures only by `Debug`.
#![allow(dead_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use testkit::cri::image_service_client::ImageServiceClient;
use testkit::cri::runtime_service_client::RuntimeServiceClient;
use testkit::cri::{
    AuthConfig, ContainerConfig, CreateContainerRequest, Image, ImageSpec, ImageStatusRequest,
    PodSandboxConfig, PullImageRequest,
};
use tonic::Status;
use tonic::transport::Channel;

/// The annotation that ties an image call to a sandbox.
pub(crate) const SEEN: &str = "kubernetes.io/config.seen";

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    Always,
    IfNotPresent,
    Never,
}

/// Why a container did not start; kubelet tries again after any of these.
#[derive(Debug)]
pub(crate) enum Failure {
    /// `ImageInspectError`.
    Inspect(Status),
    /// `ErrImageNeverPull`.
    NeverPull,
    /// `ErrImagePull`.
    Pull(Status),
    /// `CreateContainerConfigError`: the image's user could not be read.
    User(Status),
    /// `CreateContainerError`.
    Create(Status),
}

/// A container that was created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Created {
    pub(crate) id: String,
    /// The image ID that it was created with.
    pub(crate) image: String,
    /// The user that kubelet would run it as: what the image says, or root for an image that is not there.
    pub(crate) uid: i64,
    pub(crate) pulled: bool,
}

/// kubelet's two clients.
#[derive(Debug, Clone)]
pub(crate) struct Kubelet {
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
}

/// Returns a `config.seen` that no pod had before.
pub(crate) fn new_seen() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("2026-11-23T15:25:28.{:09}Z", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Gives a pod the annotations of the pods of a new kubelet process.
pub(crate) fn see_again(config: &mut PodSandboxConfig) {
    config.annotations.insert("kubernetes.io/config.source".to_owned(), "api".to_owned());
    config.annotations.insert(SEEN.to_owned(), new_seen());
}

/// What `ImageStatus#1` and `#2` and `PullImage` carry: the reference with its tag, the pod's annotations.
pub(crate) fn annotated(image: &str, config: &PodSandboxConfig) -> ImageSpec {
    let last = image.rsplit('/').next().unwrap_or_default();
    let complete = if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") };
    ImageSpec { image: complete, annotations: config.annotations.clone(), ..Default::default() }
}

/// What `ImageStatus#3` carries: the reference of the pod's spec and nothing else.
pub(crate) fn bare(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..Default::default() }
}

impl Kubelet {
    /// `ImageStatus`; `None` is absent.
    pub(crate) async fn image(&self, spec: ImageSpec) -> Result<Option<Image>, Status> {
        let request = ImageStatusRequest { image: Some(spec), verbose: false };
        Ok(self.images.clone().image_status(request).await?.into_inner().image)
    }

    /// `PullImage` for a pod.
    pub(crate) async fn pull(
        &self,
        image: &str,
        config: &PodSandboxConfig,
        auth: Option<AuthConfig>,
    ) -> Result<String, Status> {
        let (image, sandbox_config) = (Some(annotated(image, config)), Some(config.clone()));
        let request = PullImageRequest { image, auth, sandbox_config };
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    /// `ImageStatus#3`: which user the container runs as.
    pub(crate) async fn uid(&self, image: &str) -> Result<i64, Status> {
        let found = self.image(bare(image)).await?;
        Ok(found.and_then(|image| image.uid).map_or(0, |uid| uid.value))
    }

    /// `CreateContainer` of the image `id`, which the pod's spec names `image`.
    pub(crate) async fn create(
        &self,
        sandbox: &str,
        config: &PodSandboxConfig,
        container: ContainerConfig,
        image: &str,
        id: &str,
    ) -> Result<String, Status> {
        let spec = ImageSpec { user_specified_image: image.to_owned(), ..bare(id) };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(ContainerConfig { image: Some(spec), ..container }),
            sandbox_config: Some(config.clone()),
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    /// Finds or pulls the image, and returns its ID and whether it was pulled.
    pub(crate) async fn ensure_image(
        &self,
        image: &str,
        config: &PodSandboxConfig,
        policy: Policy,
        auth: Option<AuthConfig>,
    ) -> Result<(String, bool), Failure> {
        if policy != Policy::Always {
            let found = self.image(annotated(image, config)).await.map_err(Failure::Inspect)?;
            match found {
                Some(found) => return Ok((found.id, false)),
                None if policy == Policy::Never => return Err(Failure::NeverPull),
                None => {}
            }
        }
        let id = self.pull(image, config, auth).await.map_err(Failure::Pull)?;
        // Its size is only for an event, and errors are ignored.
        let _ = self.image(annotated(image, config)).await;
        Ok((id, true))
    }

    /// All image calls of a container start, and its creation.
    pub(crate) async fn start(
        &self,
        sandbox: &str,
        config: &PodSandboxConfig,
        container: ContainerConfig,
        image: &str,
        policy: Policy,
    ) -> Result<Created, Failure> {
        let (found, pulled) = Box::pin(self.ensure_image(image, config, policy, None)).await?;
        let uid = self.uid(image).await.map_err(Failure::User)?;
        let created = Box::pin(self.create(sandbox, config, container, image, &found)).await;
        Ok(Created { id: created.map_err(Failure::Create)?, image: found, uid, pulled })
    }
}
