//! The image store: names, IDs, pulls and removals.
//!
//! The two families differ in what an image ID looks like and in how `sha256:…` is read, so an ID
//! must not be forwarded from one to the other. Equal references give equal IDs in every simulated runtime.

use tonic::Status;

use super::abilities::ImageIds;
use super::ids::digest_of;
use super::state::{State, now};
use crate::cri;

/// One pull, as it was asked for.
#[derive(Debug, Clone)]
pub struct Pull {
    /// The image and its annotations and handler.
    pub image: cri::ImageSpec,
    /// The credentials.
    pub auth: Option<cri::AuthConfig>,
    /// The pod it was for.
    pub sandbox_config: Option<cri::PodSandboxConfig>,
}

impl State {
    /// Adds the image that `reference` names and returns its ID; the same ID if it is there.
    pub fn add_image(&mut self, reference: &str) -> String {
        let full = normalized(reference);
        if let Some(image) = self.images.values().find(|image| image.repo_digests.contains(&full)) {
            return image.id.clone();
        }
        let repository = repository_of(&full).to_owned();
        let hex = full.split_once("@sha256:").map_or_else(|| digest_of(&full), |(_, hex)| digest_of(hex));
        let digest = full.split_once('@').map_or_else(
            || format!("{repository}@sha256:{}", digest_of(&format!("manifest of {full}"))),
            |_| full.clone(),
        );
        let id = match self.abilities.image_ids {
            ImageIds::Containerd => format!("sha256:{hex}"),
            ImageIds::Crio => hex,
        };
        // A tag names one image: pulling moves it.
        for other in self.images.values_mut().filter(|other| other.id != id) {
            other.repo_tags.retain(|tag| *tag != full);
        }
        let username = self.abilities.image_username.clone();
        let uid = username.is_empty().then_some(cri::Int64Value { value: self.abilities.image_uid });
        let image = self.images.entry(id.clone()).or_insert_with(|| cri::Image {
            id: id.clone(),
            size: 1 << 20,
            uid,
            username,
            spec: Some(cri::ImageSpec { image: id.clone(), ..Default::default() }),
            ..Default::default()
        });
        if !full.contains('@') && !image.repo_tags.contains(&full) {
            image.repo_tags.push(full);
        }
        if !image.repo_digests.contains(&digest) {
            image.repo_digests.push(digest);
        }
        id
    }

    /// Returns the image that an ID, ID prefix, tag or digest names.
    pub fn image(&self, reference: &str) -> Option<&cri::Image> {
        if reference.is_empty() {
            return None;
        }
        if let Some(image) = self.images.get(reference) {
            return Some(image);
        }
        let full = normalized(reference);
        let named =
            |image: &&cri::Image| image.repo_tags.contains(&full) || image.repo_digests.contains(&full);
        self.images.values().find(named).or_else(|| self.image_by_prefix(reference))
    }

    /// Gives the image that `reference` names one more tag; nothing happens if there is no such image.
    pub fn tag_image(&mut self, reference: &str, tag: &str) {
        let Some(id) = self.image(reference).map(|image| image.id.clone()) else { return };
        let tag = normalized(tag);
        for image in self.images.values_mut() {
            image.repo_tags.retain(|other| *other != tag);
            if image.id == id {
                image.repo_tags.push(tag.clone());
            }
        }
    }

    /// Removes the image that `reference` names, with all its tags; an unknown one is no error.
    pub fn remove_image(&mut self, reference: &str) {
        if let Some(id) = self.image(reference).map(|image| image.id.clone()) {
            self.images.remove(&id);
        }
    }

    pub(crate) fn pull_image(
        &mut self,
        request: cri::PullImageRequest,
    ) -> Result<cri::PullImageResponse, Status> {
        let image = request.image.unwrap_or_default();
        if image.image.is_empty() {
            return Err(Status::invalid_argument(
                "failed to parse image reference \"\": invalid reference format",
            ));
        }
        let image_ref = self.add_image(&image.image);
        self.pulls.push(Pull { image, auth: request.auth, sandbox_config: request.sandbox_config });
        Ok(cri::PullImageResponse { image_ref })
    }

    pub(crate) fn image_status(&self, request: &cri::ImageStatusRequest) -> cri::ImageStatusResponse {
        let reference = request.image.as_ref().map_or("", |spec| spec.image.as_str());
        let image = self.image(reference).cloned();
        let mut response = cri::ImageStatusResponse { image, ..Default::default() };
        if request.verbose && response.image.is_some() {
            let info =
                serde_json::json!({ "imageSpec": { "os": "linux", "config": { "Env": ["PATH=/bin"] } } });
            response.info.insert("info".into(), info.to_string());
        }
        response
    }

    pub(crate) fn list_images(&self, filter: Option<&cri::ImageFilter>) -> Vec<cri::Image> {
        let reference =
            filter.and_then(|filter| filter.image.as_ref()).map_or("", |spec| spec.image.as_str());
        if reference.is_empty() {
            return self.images.values().cloned().collect();
        }
        self.image(reference).cloned().into_iter().collect()
    }

    pub(crate) fn image_fs_info(&self) -> cri::ImageFsInfoResponse {
        let usage = self.filesystem_usage(self.images.values().map(|image| image.size).sum());
        cri::ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }
    }

    pub(crate) fn filesystem_usage(&self, bytes: u64) -> cri::FilesystemUsage {
        cri::FilesystemUsage {
            timestamp: now(),
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: self.abilities.mountpoint.clone() }),
            used_bytes: Some(cri::UInt64Value { value: bytes }),
            inodes_used: Some(cri::UInt64Value { value: 42 }),
        }
    }

    fn image_by_prefix(&self, reference: &str) -> Option<&cri::Image> {
        let hex = match self.abilities.image_ids {
            ImageIds::Containerd => reference.strip_prefix("sha256:").unwrap_or(reference),
            ImageIds::Crio => reference,
        };
        if hex.is_empty() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut matches =
            self.images.values().filter(|image| image.id.trim_start_matches("sha256:").starts_with(hex));
        matches.next().filter(|_| matches.next().is_none())
    }
}

/// Completes a reference as the distribution tools do: default registry, `library/`, `:latest`.
pub(crate) fn normalized(reference: &str) -> String {
    let (name, digest) = reference.split_once('@').map_or((reference, None), |(name, hex)| (name, Some(hex)));
    let first = name.split('/').next().unwrap_or_default();
    let has_registry = name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let mut full = match (has_registry, name.contains('/')) {
        (true, _) => name.to_owned(),
        (false, true) => format!("docker.io/{name}"),
        (false, false) => format!("docker.io/library/{name}"),
    };
    if let Some(digest) = digest {
        return format!("{}@{digest}", repository_of(&full));
    }
    if repository_of(&full) == full {
        full.push_str(":latest");
    }
    full
}

/// Cuts tag or digest off a complete reference.
fn repository_of(full: &str) -> &str {
    let name = full.split('@').next().unwrap_or(full);
    match name.rfind(':') {
        Some(colon) if !name[colon..].contains('/') => &name[..colon],
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_completed() {
        assert_eq!(normalized("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(normalized("team/app:1"), "docker.io/team/app:1");
        assert_eq!(normalized("localhost:5000/app"), "localhost:5000/app:latest");
        assert_eq!(normalized("app:1@sha256:ab"), "docker.io/library/app@sha256:ab");
    }

    fn store(image_ids: ImageIds) -> State {
        let abilities = super::super::abilities::Abilities { image_ids, ..Default::default() };
        State::new("test", abilities, Some(1))
    }

    #[test]
    fn containerd_finds_an_image_by_each_of_its_names() {
        let mut store = store(ImageIds::Containerd);
        let id = store.add_image("busybox:1");
        let digest = store.images[&id].repo_digests[0].clone();
        for name in [id.as_str(), &id[7..], &id[7..20], "busybox:1", "docker.io/library/busybox:1", &digest] {
            assert_eq!(store.image(name).map(|image| &image.id), Some(&id), "{name}");
        }
        assert!(store.image("busybox:2").is_none());
    }

    #[test]
    fn crio_reads_a_containerd_id_as_a_name() {
        let mut store = store(ImageIds::Crio);
        let id = store.add_image("busybox:1");
        assert_eq!(id.len(), 64);
        assert!(store.image(&id).is_some());
        assert!(store.image(&format!("sha256:{id}")).is_none());
    }
}
