//! The forward lane: bytes in, same bytes out.

use testkit::Client;
use testkit::runtime::SimRuntime;

use crate::support::Crimux;

#[tokio::test]
async fn a_status_passes_with_the_very_bytes_of_its_owner() {
    let runtime = SimRuntime::builder("a").containers(4, 2).start().await;
    let crimux = Crimux::start(&[("a", &runtime)]).await;
    let id = runtime.state().containers().next().unwrap().id.clone();
    let request = testkit::cri::ContainerStatusRequest { container_id: id, verbose: false };
    let path = "/runtime.v1.RuntimeService/ContainerStatus";
    let through = crimux.client().raw_message(path, &request).await.unwrap();
    let direct = Client::unix(runtime.socket()).raw_message(path, &request).await.unwrap();
    assert_eq!(through.messages, direct.messages);
    assert_eq!(through.code(), direct.code());
}
