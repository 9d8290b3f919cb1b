//! A new process that does not serve changes nothing: the old one goes on, and says why.

use super::*;
use crate::outage::sandboxes;

/// A backend, and a node that has saved its state: a start without any waits for its backends.
async fn with_saved_state() -> (SimRuntime, Node) {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let mut node = Node::start(&[("a", &a)], "").await;
    node.crimux.restart().await;
    node.crimux.wait_ready().await;
    (a, node)
}

/// A create is answered, and known after a kill.
async fn works(node: &mut Node, a: &SimRuntime, name: &str) {
    let up = "crimux_backend_up{backend=\"a\"}";
    eventually(SOON, async || node.crimux.metric(up).await == Some(1.0)).await;
    let id = create(&node.client(), name, "a").await.unwrap();
    node.saved().await;
    a.stop().await;
    node.crimux.kill_and_start().await;
    node.crimux.wait_ready().await;
    let listed = sandboxes(&node.client(), None).await.unwrap();
    assert!(listed.contains(&id), "{name}: {listed:?}\n{}", node.crimux.log());
    a.start_again().await;
}

#[tokio::test]
async fn a_program_that_crashes_hangs_or_is_none_leaves_the_old_process_as_it_is() {
    let (a, mut node) = with_saved_state().await;
    let cases = [
        ("exit 3", "30s", "exit status: 3"),
        ("kill -SEGV $$", "30s", "signal: 11"),
        ("cat > /dev/null", "50ms", "did not serve in time"),
    ];
    for (script, within, said) in cases {
        let before = node.pid().await;
        let binary = node.program(script);
        let output = node.upgrade(&["--binary", &binary, "--within", within]).await;
        let errors = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{script}: {errors}");
        assert!(errors.contains(said), "{script}: {errors}");
        assert!(errors.contains(&format!("pid {before} goes on")), "{script}: {errors}");
        assert_eq!(node.pid().await, before, "{script}");
        let started = *node.started().last().unwrap();
        gone(started).await;
        works(&mut node, &a, script.split(' ').next().unwrap()).await;
    }
    let output = node.upgrade(&["--binary", "/nobody/crimux"]).await;
    assert!(errors(&output).contains("cannot start /nobody/crimux"), "{}", errors(&output));
    works(&mut node, &a, "none").await;
}

#[tokio::test]
async fn a_configuration_that_the_new_process_refuses_is_named_and_the_old_one_goes_on() {
    let (a, mut node) = with_saved_state().await;
    let yaml = std::fs::read_to_string(node.path().join("crimux.yaml")).unwrap();
    let (before, elsewhere) = (node.pid().await, node.path().join("elsewhere").display().to_string());
    let state = node.path().join("state").display().to_string();
    let cases = [
        (yaml.clone() + "drain_timout: 1s\n", "did you mean drain_timeout?"),
        (
            yaml.replace(&format!("state_dir: {state}"), &format!("state_dir: {elsewhere}")),
            "without the copy the pods of backends that are down are unknown",
        ),
    ];
    for (wrong, said) in cases {
        node.crimux.rewrite(&wrong);
        let output = node.upgrade(&[]).await;
        let errors = errors(&output);
        assert!(!output.status.success() && errors.contains(said), "{errors}");
        assert_eq!(node.pid().await, before);
    }
    node.crimux.rewrite(&yaml);
    works(&mut node, &a, "refused").await;
}

#[tokio::test]
async fn a_second_upgrade_is_refused_while_one_is_under_way() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let node = Node::start(&[("a", &a)], "").await;
    let binary = node.program("cat > /dev/null");
    let arguments = ["--binary", binary.as_str()];
    let upgrading = node.upgrade(&arguments);
    let meanwhile = async {
        node.logged(STARTED, 1).await;
        let output = node.upgrade(&[]).await;
        assert!(errors(&output).contains("an upgrade is under way already"), "{}", errors(&output));
        node.kill(node.started()[0]);
    };
    let (output, ()) = tokio::join!(upgrading, meanwhile);
    assert!(errors(&output).contains("signal: 9"), "{}", errors(&output));
}
