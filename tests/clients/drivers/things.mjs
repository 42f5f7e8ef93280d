// What the drivers in JavaScript ask and expect; things.py has the same.
export const URL = process.env.OPENAI_BASE_URL;
export const MODEL = process.env.MODEL;
export const CAPITAL = "What is the capital of France?";
export const CAPITAL_ANSWER = "The capital of France is Paris.";
export const PERSON = "Extract the person: Ada is 36 years old.";
export const ADA = { name: "Ada", age: 36 };
export const WEATHER = "How is the weather in Paris?";
export const WEATHER_ANSWER = "It is sunny in Paris.";
export const USER = [{ role: "user", content: CAPITAL }];
export const ASK_PERSON = [{ role: "user", content: PERSON }];
export const ASK_WEATHER = [{ role: "user", content: WEATHER }];
export const getWeather = (city) => `It is sunny in ${city}, 20 degrees.`;
