//! Image calls, each to the store that it means.
//!
//! Images live in each backend's own store and kubelet's calls rarely say which they mean. A pull goes by the
//! handler it names, else by the pod it is for, else to the default backend, and never to two of them: it
//! carries credentials. An image is removed wherever it is listed.

use std::sync::Arc;

use futures_util::future::join_all;
use tonic::Code;

use crate::backend::Backend;
use crate::codec::Message;
use crate::error::Error;
use crate::method::{ImageCall, Method};
use crate::proxy::Call;
use crate::proxy::reply::Outcome;
use crate::wire;

/// `ImageSpec.runtime_handler`.
const HANDLER: u32 = 19;

impl Call {
    /// Sends an image call to the store that it means.
    pub(super) async fn image(
        &mut self,
        method: &'static Method,
        call: ImageCall,
        message: Message,
    ) -> Result<Outcome, Error> {
        match call {
            ImageCall::Pull => self.pull(method, message).await,
            ImageCall::Status => self.image_status(method, message).await,
            ImageCall::Remove => self.remove_image(method, message).await,
        }
    }

    async fn pull(&mut self, method: &'static Method, message: Message) -> Result<Outcome, Error> {
        let backend = self.store_of_pull(message.encoded())?;
        self.watch.at(&backend);
        let headers = std::mem::take(&mut self.headers);
        let reply = backend.call(Some(method), &self.path, headers, message.framed()).await?;
        Ok(Outcome::Arriving(reply))
    }

    fn store_of_pull(&self, request: &[u8]) -> Result<Arc<Backend>, Error> {
        if let Some(scope) = &self.scope {
            return self.node.backend(scope);
        }
        let handler = wire::peek_str(request, &[1, HANDLER])?;
        let uid = wire::peek_str(request, &[3, 1, 2])?;
        if !handler.is_empty() {
            return self.node.backend(&self.node.choose(handler, uid)?.backend);
        }
        let pods = self.node.router.owners.pods(|pod| !uid.is_empty() && &*pod.uid == uid);
        let newest = pods.into_iter().max_by_key(|(_, pod)| (pod.ready, pod.created_at));
        let name = newest.map_or_else(|| self.node.default_in(None), |(backend, _)| backend);
        self.node.backend(&name)
    }

    async fn image_status(&mut self, method: &'static Method, message: Message) -> Result<Outcome, Error> {
        self.watch.at_all(&self.node);
        let headers = std::mem::take(&mut self.headers);
        let backends = self.backends();
        let asked = backends.iter().map(|backend| backend.fetch(method, headers.clone(), message.framed()));
        let mut absent = None;
        let mut unasked = None;
        for reply in join_all(asked).await {
            match reply {
                Ok(reply) if reply.code == Code::Ok && wire::has_path(reply.message.encoded(), &[1])? => {
                    return Ok(reply.into());
                }
                Ok(reply) if reply.code == Code::Ok => absent = Some(reply),
                Ok(reply) => return Ok(reply.into()),
                Err(error) => unasked = Some(error),
            }
        }
        match (unasked, absent) {
            (Some(error), _) => Err(error),
            (None, Some(reply)) => Ok(reply.into()),
            (None, None) => Ok(Outcome::message(&[])),
        }
    }

    async fn remove_image(&mut self, method: &'static Method, message: Message) -> Result<Outcome, Error> {
        self.broadcast(method, message).await
    }
}
