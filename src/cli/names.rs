//! The names that shells complete: backends, handlers and namespaces of the running crimux.
//!
//! A completion runs while an operator types, so this asks with a short deadline, falls back to the
//! configuration file, and never prints an error.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;

use crate::admin::api::{PodsView, RoutesView, StatusView};
use crate::cli::client::AdminClient;
use crate::cli::output;
use crate::config::Config;

/// How long an operator who types waits.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a name names.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum NameKind {
    /// The backends.
    Backends,
    /// The handlers of the configuration.
    Handlers,
    /// The namespaces that have pods on the node.
    Namespaces,
    /// The pods of the node, as NAMESPACE/NAME.
    Pods,
}

pub(super) async fn print(kind: NameKind, client: AdminClient) -> anyhow::Result<ExitCode> {
    let names = match fetch_names(kind, client.quiet(PATIENCE)).await {
        Ok(names) => names,
        Err(_) => configured_names(kind, &client),
    };
    output::print(&names.into_iter().map(|name| name + "\n").collect::<String>())?;
    Ok(ExitCode::SUCCESS)
}

async fn fetch_names(kind: NameKind, client: AdminClient) -> anyhow::Result<BTreeSet<String>> {
    Ok(match kind {
        NameKind::Backends => {
            let status: StatusView = client.get("/v1/status").await?;
            status.backends.into_iter().map(|backend| backend.name).collect()
        }
        NameKind::Handlers => {
            let routes: RoutesView = client.get("/v1/routes").await?;
            routes.routes.into_iter().map(|route| route.handler).filter(|name| !name.is_empty()).collect()
        }
        NameKind::Namespaces => pods(&client).await?.pods.into_iter().map(|pod| pod.namespace).collect(),
        NameKind::Pods => {
            let pods = pods(&client).await?.pods;
            pods.into_iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect()
        }
    })
}

async fn pods(client: &AdminClient) -> anyhow::Result<PodsView> {
    client.get("/v1/pods").await
}

fn configured_names(kind: NameKind, client: &AdminClient) -> BTreeSet<String> {
    let Ok(config) = Config::load(client.config()) else { return BTreeSet::new() };
    match kind {
        NameKind::Backends => config.backends.into_keys().collect(),
        NameKind::Handlers => config.handlers.into_keys().collect(),
        NameKind::Namespaces | NameKind::Pods => BTreeSet::new(),
    }
}
