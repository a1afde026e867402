/** Figures as people read them: 1,024 tokens; 87 %; 1.4 times; 2.31 s. */

const count = new Intl.NumberFormat("en");

export const whole = (number) => count.format(Math.round(number));
export const short = (number) => (number >= 100 ? whole(number) : number.toFixed(number >= 10 ? 1 : 2));
export const rate = (number) => (number >= 20 ? whole(number) : number.toFixed(1));
export const percent = (share) => `${Math.round(share * 100)} %`;
export const times = (ratio) => `${ratio.toFixed(2)}×`;
export const seconds = (number) => `${number.toFixed(number < 10 ? 2 : 1)} s`;

/** `plural(1, "token")` is "1 token", `plural(2, "token")` "2 tokens". */
export const plural = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;

/** How long a server has been up: "3 min", "2 h 10 min", "5 days". */
export function duration(all) {
  const minutes = Math.floor(all / 60);
  if (minutes < 1) return `${Math.floor(all)} s`;
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / (24 * 60))} days`;
}
