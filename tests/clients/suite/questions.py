"""What every client asks: a greeting, a tool over two turns, an object of a schema, and fields beyond OpenAI's."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

GREETING = "Say hello."
WEATHER = "What is the weather in Paris? Call the tool get_weather."
BOAT = "Invent a boat. Answer with JSON of its kind (rowing, sailing or ferry) and its length in metres."

PLAIN: dict[str, Any] = {"speculation": {"method": "plain"}}
WRONG: dict[str, Any] = {"speculation": {"method": "absent"}}
REFUSED = r"speculation\.method"
"""What the error says where WRONG has reached the server."""


class Boat(BaseModel):
    # Without bounds a small model would go on until it is cut short.
    model_config = ConfigDict(extra="forbid")
    kind: Literal["rowing", "sailing", "ferry"]
    length: Annotated[int, Field(ge=1, le=99)]


SUNNY = "It is sunny in Paris."


def get_weather(city: str) -> str:
    """Returns the weather of a city.

    Args:
        city: Name of the city.
    """
    return SUNNY
