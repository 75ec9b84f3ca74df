//! Histograms in messages: the V2 encoding of HdrHistogram, compressed, as base64. Every bucket
//! keeps its count, so that sums over workers are exact.

use crate::verifier::histogram;
use base64::{Engine, engine::general_purpose::STANDARD};
use hdrhistogram::{
    Histogram,
    serialization::{Deserializer as FromV2, Serializer as ToV2, V2DeflateSerializer},
};
use serde::{Deserialize, Deserializer, Serializer, de::Error as _, ser::Error as _};

pub(crate) fn serialize<S: Serializer>(
    histogram: &Histogram<u64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new()
        .serialize(histogram, &mut bytes)
        .map_err(S::Error::custom)?;
    serializer.serialize_str(&STANDARD.encode(bytes))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Histogram<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
    let carried: Histogram<u64> = FromV2::new()
        .deserialize(&mut bytes.as_slice())
        .map_err(|error| D::Error::custom(format!("no histogram: {error:?}")))?;
    let bounds = |h: &Histogram<u64>| (h.low(), h.high(), h.sigfig());
    if bounds(&carried) != bounds(&histogram()) {
        return Err(D::Error::custom("a histogram of other bounds"));
    }
    Ok(carried)
}

/// Those of a second, which has not always all of them.
pub(crate) mod parts {
    use crate::series::Parts;
    use hdrhistogram::Histogram;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize)]
    struct Lent<'a>(#[serde(serialize_with = "lent")] &'a Histogram<u64>);

    fn lent<S: Serializer>(histogram: &&Histogram<u64>, to: S) -> Result<S::Ok, S::Error> {
        super::serialize(histogram, to)
    }

    #[derive(Deserialize)]
    struct Own(#[serde(with = "super")] Histogram<u64>);

    pub(crate) fn serialize<S: Serializer>(parts: &Parts, to: S) -> Result<S::Ok, S::Error> {
        parts
            .each_ref()
            .map(|part| part.as_ref().map(Lent))
            .serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Parts, D::Error> {
        let parts = <[Option<Own>; _]>::deserialize(from)?;
        Ok(parts.map(|part| part.map(|own| own.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{random::Random, series::Interval};

    #[derive(serde::Serialize, Deserialize)]
    struct Carried(#[serde(with = "super")] Histogram<u64>);

    #[test]
    fn sums_of_carried_histograms_are_exact() {
        let mut random = Random::new(3);
        let (mut all, mut sum) = (histogram(), histogram());
        for _ in 0..5 {
            let mut part = histogram();
            for _ in 0..10_000 {
                let magnitude = random.below(30);
                let us = u64::from(random.below(1 << magnitude).max(1));
                part.record(us).expect("within bounds");
                all.record(us).expect("within bounds");
            }
            let text = serde_json::to_string(&Carried(part)).expect("written");
            let carried: Carried = serde_json::from_str(&text).expect("read");
            sum.add(&carried.0).expect("the same bounds");
        }
        assert_eq!(sum, all);
        assert_eq!((sum.len(), sum.max()), (50_000, all.max()));
    }

    #[test]
    fn a_second_keeps_what_it_has() {
        let mut latency_us = histogram();
        latency_us.record(70).expect("within bounds");
        let second = Interval {
            second: 3,
            parts: [Some(latency_us), None, None, Some(histogram())],
        };
        let text = serde_json::to_string(&second).expect("written");
        let carried: Interval = serde_json::from_str(&text).expect("read");
        assert_eq!(carried, second);
    }

    #[test]
    fn an_empty_one_can_be_added_to_and_nonsense_is_refused() {
        let text = serde_json::to_string(&Carried(histogram())).expect("written");
        let mut empty: Carried = serde_json::from_str(&text).expect("read");
        empty.0.record(600_000_000).expect("the bounds are kept");
        for text in ["\"\"", "\"*\"", "\"AAAA\""] {
            assert!(serde_json::from_str::<Carried>(text).is_err(), "{text}");
        }
        let other = Histogram::new_with_bounds(1, 1_000, 2).expect("valid");
        let text = serde_json::to_string(&Carried(other)).expect("written");
        assert!(serde_json::from_str::<Carried>(&text).is_err());
    }
}
