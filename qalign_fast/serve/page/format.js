// Numbers of rows in, the text that people read out.

/** A score with the decimals of the command line's table. */
export const scoreText = (score) => score.toFixed(3);

/** A probability of 0..1 in percent, which no line breaks. */
export const percent = (probability) => `${(100 * probability).toFixed(1)}\u00a0%`;

/** "1 to 5", of a model's scale. */
export const scaleText = ([low, high]) => `${low} to ${high}`;

/** A difference of two scores, with its sign. */
export const signed = (difference) => `${difference < 0 ? "−" : "+"}${scoreText(Math.abs(difference))}`;

/** "1 picture", "2 pictures". */
export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** Seconds of a clip: "0 s", "2.5 s". */
export const secondsText = (seconds) => `${Number(seconds.toFixed(2))} s`;

/** Bytes in MiB, as limits are told. */
export const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MiB`;

/** The first letter in upper case: "Quality". */
export const titled = (word) => word.charAt(0).toUpperCase() + word.slice(1);
