//! The configuration: any text is a configuration or a list of problems, each with a place in it.
#![no_main]

use std::path::Path;

use crimux::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Config::parse(text, Path::new("/etc/crimux")) {
        Ok(config) => {
            assert!(config.backends.contains_key(&config.default_backend));
            let targets = config.handlers.values().flatten();
            assert!(targets.into_iter().all(|target| config.backends.contains_key(&target.backend)));
        }
        Err(problems) => {
            assert!(!problems.0.is_empty());
            assert!(problems.0.iter().all(|problem| problem.line > 0 && problem.column > 0));
            assert!(!problems.to_string().is_empty());
        }
    }
});
