"""What every client asks: a greeting, a tool over two turns, an object of a schema."""

from typing import Literal

from pydantic import BaseModel

GREETING = "Say hello."
WEATHER = "What is the weather in Paris? Call the tool get_weather."
BOAT = "Invent a boat. Answer with JSON of its kind (rowing, sailing or ferry) and its length in metres."


class Boat(BaseModel):
    kind: Literal["rowing", "sailing", "ferry"]
    length: int


SUNNY = "It is sunny in Paris."


def get_weather(city: str) -> str:
    """Returns the weather of a city.

    Args:
        city: Name of the city.
    """
    return SUNNY
