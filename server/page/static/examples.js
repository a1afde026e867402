/** Prompts to begin with, one of a kind, in the words of the prompts that the default model is calibrated for. */

export const STORY = `Write a short story for young children that begins with this sentence.

Sentence: Once upon a time, a fox found a blue umbrella.

Story:`;

const QUERY = `Write a SQL query that answers the question.

Tables:
singer(singer_id, name, country, age)
concert(concert_id, title, year, singer_id)

Question: Which singers from France gave a concert in 2014?

SQL:`;

const SUM = `Question: Tom has 12 apples. He gives a third of them to Ann and buys 5 more. How many apples has he now?
Let's think step by step.
Answer:`;

const TRANSLATION = `Translate German to English.

German: Heute scheint die Sonne, und wir fahren ans Meer.

English:`;

/** Each with its name. */
export const EXAMPLES = [["A SQL query", QUERY], ["A story", STORY], ["A sum, step by step", SUM], ["A translation", TRANSLATION]];
