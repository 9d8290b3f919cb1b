//! The streaming URLs of exec, attach and port-forward replies; `relay/url.rs` has the rules.

use tonic::Code;

use crate::backend::{Backend, BufferedReply};
use crate::codec::Message;
use crate::cri::STREAM_URL;
use crate::error::Error;
use crate::proxy::Node;
use crate::relay::ClientUrl;
use crate::wire;

impl Node {
    /// Replaces a streaming URL that kubelet could not dial by one of the relay.
    pub(super) fn rewrite_stream_url(
        &self,
        backend: &Backend,
        reply: BufferedReply,
    ) -> Result<BufferedReply, Error> {
        if reply.code != Code::Ok {
            return Ok(reply);
        }
        let url = wire::peek_str(reply.message.encoded(), &[STREAM_URL])
            .map_err(|error| backend.stream_url_error(error))?;
        // The connector is made even if the URL passes, so that unusable TLS files fail every stream, not
        // only relayed ones.
        let connector = backend.connector().map_err(|error| backend.stream_url_error(error))?;
        let client_url = self.relay.issue_url(&backend.name, &backend.config(), &connector, url);
        match client_url.map_err(|error| backend.stream_url_error(error))? {
            ClientUrl::AsIs => Ok(reply),
            ClientUrl::Relayed(relay_url) => {
                let message =
                    Message::new(&wire::append_str(reply.message.encoded(), &[STREAM_URL], &relay_url));
                Ok(BufferedReply { message, ..reply })
            }
        }
    }
}
