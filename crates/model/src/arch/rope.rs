//! Rotary position embedding (arXiv 2104.09864) and the ways to stretch it over longer texts.

use std::f64::consts::TAU;

/// How positions turn queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    pub(crate) style: RopeStyle,
    /// Leading elements of a head that are turned; even.
    pub(crate) dims: usize,
    pub(crate) base: f32,
    pub(crate) scaling: Scaling,
}

/// Which elements of a head are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RopeStyle {
    /// Elements 2i and 2i + 1: llama's GGUF files, whose converter reorders Q and K for it.
    Adjacent,
    /// Elements i and i + dims / 2 (GPT-NeoX).
    Halves,
    /// Elements i and i + dims / 2, left at 2i and 2i + 1: llama's folders. So their heads lie as
    /// those of the GGUF file do, and every sum over a head has the same bits.
    HalvesToAdjacent,
}

/// How the frequencies `base^(-2i / dims)` are changed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scaling {
    None,
    /// All divided by this (position interpolation, arXiv 2306.15595).
    Linear(f32),
    Llama3(Llama3),
    /// Frequency i divided by factor i (`rope_freqs.weight` of GGUF files, which holds what `Llama3`
    /// computes).
    Factors(Vec<f32>),
    Yarn(Yarn),
}

/// Llama 3.1's: long waves are divided by `factor`, short ones kept, those between blended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Llama3 {
    pub(crate) factor: f32,
    pub(crate) low_freq_factor: f32,
    pub(crate) high_freq_factor: f32,
    /// Positions before the stretch.
    pub(crate) original: u32,
}

/// YaRN (arXiv 2309.00071): "NTK-by-parts" frequencies, and larger attention scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Yarn {
    pub(crate) factor: f32,
    /// Positions before the stretch.
    pub(crate) original: u32,
    /// Dimensions that turn more often than this over `original` positions are kept.
    pub(crate) beta_fast: f32,
    /// Those that turn less often than this are divided by `factor`.
    pub(crate) beta_slow: f32,
    /// Whether the ends of the ramp between them are rounded outward to whole dimensions.
    pub(crate) truncate: bool,
    /// Multiplies sines and cosines, so scores by its square; the paper's is 0.1 ln(factor) + 1.
    pub(crate) attention: f64,
}

impl Rope {
    /// Radians a position, for each of the `dims / 2` pairs.
    pub(crate) fn frequencies(&self) -> Vec<f64> {
        let (base, pairs) = (f64::from(self.base), self.dims / 2);
        let plain = |i: usize| libm::pow(base, -2.0 * i as f64 / self.dims as f64);
        (0..pairs)
            .map(|i| match &self.scaling {
                Scaling::None => plain(i),
                Scaling::Linear(factor) => plain(i) / f64::from(*factor),
                Scaling::Llama3(llama3) => plain(i) / f64::from(llama3.divisor(plain(i))),
                Scaling::Factors(factors) => plain(i) / factors.get(i).copied().map_or(1.0, f64::from),
                Scaling::Yarn(yarn) => {
                    let kept = yarn.kept(i, self.dims, base);
                    plain(i) / f64::from(yarn.factor) * (1.0 - kept) + plain(i) * kept
                }
            })
            .collect()
    }

    /// What multiplies sines and cosines.
    pub(crate) fn amplitude(&self) -> f64 {
        match &self.scaling {
            Scaling::Yarn(yarn) => yarn.attention,
            _ => 1.0,
        }
    }

    /// Positions that the scaling reaches, when the model's own are `context`.
    pub(crate) fn reach(&self, context: u32) -> u32 {
        let stretched = |original: u32, factor: f32| (f64::from(original) * f64::from(factor)) as u32;
        context.max(match &self.scaling {
            Scaling::None | Scaling::Factors(_) => 0,
            Scaling::Linear(factor) => stretched(context, *factor),
            Scaling::Llama3(llama3) => stretched(llama3.original, llama3.factor),
            Scaling::Yarn(yarn) => stretched(yarn.original, yarn.factor),
        })
    }
}

impl Llama3 {
    /// What a frequency is divided by; rounded to f32, as GGUF files store it.
    fn divisor(&self, frequency: f64) -> f32 {
        let (low, high) = (f64::from(self.low_freq_factor), f64::from(self.high_freq_factor));
        let (factor, wavelength) = (f64::from(self.factor), TAU / frequency);
        let original = f64::from(self.original);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            self.factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        }
    }
}

impl Yarn {
    /// 0.1 m ln(factor) + 1: the paper's temperature, with the weight m that some configs give it.
    pub(crate) fn temperature(factor: f64, m: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * m * libm::log(factor) + 1.0 }
    }

    /// How much of frequency `i` is left as it was: 1 below the ramp, 0 above it.
    fn kept(&self, i: usize, dims: usize, base: f64) -> f64 {
        // The dimension that turns `turns` times over the original positions (the paper's section 3.2).
        let dimension = |turns: f32| {
            let waves = f64::from(self.original) / (f64::from(turns) * TAU);
            dims as f64 * libm::log(waves) / (2.0 * libm::log(base))
        };
        let (mut low, mut high) = (dimension(self.beta_fast), dimension(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dims as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: Scaling) -> Rope {
        Rope { style: RopeStyle::Halves, dims: 128, base: 500_000.0, scaling }
    }

    #[test]
    fn llama3_keeps_short_waves_divides_long_ones_and_blends_between() {
        let llama3 = Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 8192 };
        let (plain, scaled) =
            (rope(Scaling::None).frequencies(), rope(Scaling::Llama3(llama3)).frequencies());
        for (plain, scaled) in plain.iter().zip(&scaled) {
            let (wavelength, ratio) = (TAU / plain, plain / scaled);
            match wavelength {
                w if w < 2048.0 => assert_eq!(ratio, 1.0),
                w if w > 8192.0 => assert_eq!(ratio, 8.0),
                _ => assert!(ratio > 1.0 && ratio < 8.0),
            }
        }
        assert_eq!(rope(Scaling::Llama3(llama3)).reach(131_072), 131_072);
    }

    #[test]
    fn yarn_keeps_what_turns_often_and_divides_what_does_not_turn() {
        let yarn = Yarn {
            factor: 4.0,
            original: 32_768,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention: Yarn::temperature(4.0, 1.0),
        };
        let qwen = Rope { base: 1_000_000.0, ..rope(Scaling::Yarn(yarn)) };
        let plain = Rope { scaling: Scaling::None, ..qwen.clone() }.frequencies();
        let ratios: Vec<f64> = plain.iter().zip(qwen.frequencies()).map(|(p, s)| p / s).collect();
        // 128 ln(32768 / 2 pi n) / (2 ln 1e6): 23.6 for n = 32, 39.6 for n = 1.
        assert!(ratios[..=23].iter().all(|r| (r - 1.0).abs() < 1e-12), "{ratios:?}");
        assert!(ratios[24..40].is_sorted_by(|a, b| a < b) && ratios[24] > 1.0 && ratios[39] < 4.0);
        assert!(ratios[40..].iter().all(|r| (r - 4.0).abs() < 1e-12), "{ratios:?}");
        assert!((qwen.amplitude() - 1.138_629_436_111_989).abs() < 1e-12);
        assert_eq!((qwen.reach(32_768), qwen.reach(200_000)), (131_072, 200_000));
    }

    #[test]
    fn linear_divides_all() {
        let (plain, scaled) = (rope(Scaling::None).frequencies(), rope(Scaling::Linear(4.0)).frequencies());
        assert!(plain.iter().zip(&scaled).all(|(p, s)| p / 4.0 == *s));
        assert_eq!(rope(Scaling::Linear(4.0)).reach(4096), 16_384);
        assert_eq!(rope(Scaling::None).reach(4096), 4096);
    }
}
