//! Names resolved by something of one's own: here from a list, as a registry of services would give.
//!
//! ```text
//! cargo run --release --example custom_resolver
//! ```

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use firstbyte::dns::{Answer, Family, Resolve, ResolveError, ResolveErrorKind};
use firstbyte::io::BoxFuture;
use support::providers::{KEY, Stage};

struct Registry(HashMap<String, Vec<IpAddr>>);

impl Resolve for Registry {
    fn resolve(
        &self,
        name: &str,
        family: Family,
    ) -> BoxFuture<'static, Result<Answer, ResolveError>> {
        println!("asked for {name}, {family:?}");
        let found = self.0.get(name).map(|all| {
            let of_family = all.iter().copied().filter(|ip| Family::of(ip) == family);
            // Asked for again after a minute, in the background while the name is in use.
            Answer::new(of_family.collect(), Some(Duration::from_secs(60)))
        });
        let result = found.ok_or_else(|| ResolveError::new(ResolveErrorKind::NoSuchName));
        Box::pin(std::future::ready(result))
    }
}

#[tokio::main]
async fn main() -> Result<(), firstbyte::Error> {
    let stage = Stage::set().await;
    let role = stage.role("deepseek");
    let known = HashMap::from([(role.host().to_owned(), vec![[127, 0, 0, 1].into()])]);
    let pool = stage.pool().resolver(Registry(known)).build()?;
    let client = pool.provider(role.provider.clone(), KEY).build()?;
    for _ in 0..3 {
        let request = client.post(role.provider.chat_path("m"));
        let mut response = request.body(role.question("m", false)).send().await?;
        response.bytes().await?;
        println!("{}: dns {:?}", response.status(), response.timing().dns());
    }
    let unknown = pool.client_builder("https://nowhere.test").build()?;
    let error = unknown
        .get("/")
        .send()
        .await
        .expect_err("it is not in the list");
    println!("{error}");
    Ok(())
}
