//! Names for services that were given none.

use skep_core::state::State;

use super::error::ApiError;
use crate::chain::chain;
use crate::seal;

const ADJECTIVES: [&str; 48] = [
    "able", "amber", "awake", "bold", "brave", "bright", "brisk", "busy", "calm", "candid",
    "careful", "cheerful", "clever", "cosy", "curious", "daring", "eager", "early", "fair",
    "faithful", "fearless", "fluent", "frank", "gentle", "glad", "golden", "graceful", "hardy",
    "honest", "humble", "jolly", "keen", "kind", "lively", "loyal", "lucid", "merry", "modest",
    "nimble", "patient", "plucky", "polite", "quiet", "steady", "sunny", "tidy", "warm", "witty",
];
const SURNAMES: [&str; 48] = [
    "abel",
    "avogadro",
    "banach",
    "bernoulli",
    "bohr",
    "boyle",
    "cantor",
    "cauchy",
    "cavendish",
    "celsius",
    "copernicus",
    "coulomb",
    "dalton",
    "darwin",
    "descartes",
    "dirac",
    "euclid",
    "euler",
    "faraday",
    "fermat",
    "fourier",
    "fresnel",
    "frisch",
    "galois",
    "gauss",
    "hertz",
    "hilbert",
    "hooke",
    "huber",
    "humboldt",
    "huygens",
    "joule",
    "kelvin",
    "kepler",
    "lagrange",
    "laplace",
    "leibniz",
    "linnaeus",
    "lonsdale",
    "maxwell",
    "mendel",
    "noether",
    "ohm",
    "planck",
    "riemann",
    "tinbergen",
    "volta",
    "weyl",
];

/// How often a name that is taken is drawn again before a number is appended.
const DRAWS: usize = 8;

fn pair(a: u8, b: u8) -> String {
    let pick = |words: &'static [&'static str], n: u8| {
        words.get(usize::from(n) % words.len().max(1)).copied().unwrap_or_default()
    };
    format!("{}_{}", pick(&ADJECTIVES, a), pick(&SURNAMES, b))
}

/// `adjective_surname`, as no service is called.
pub(super) fn free(state: &State) -> Result<String, ApiError> {
    let random = || seal::random::<4>().map_err(|error| ApiError::failed(chain(&error)));
    for _ in 0..DRAWS {
        let [a, b, ..] = random()?;
        let name = pair(a, b);
        if state.service_named(&name).is_none() {
            return Ok(name);
        }
    }
    let [a, b, c, d] = random()?;
    Ok(format!("{}{}", pair(a, b), u16::from_be_bytes([c, d])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_may_name_a_service() {
        for a in 0..=255 {
            assert!(skep_core::model::name::is_service_name(&pair(a, a.wrapping_mul(7))));
        }
        assert!(free(&State::default()).unwrap().contains('_'));
    }
}
