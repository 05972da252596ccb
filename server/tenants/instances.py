"""An instance (tenant) and its settings."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from server.base.models import Host
from server.base.strict import Strict
from server.outside.graph import Office365


class PasswordPolicy(Strict):
    """The rules of an instance for passwords. All have 1 to 1,024 characters."""

    minLength: int = Field(1, ge=1, le=128, description="Fewest characters.")
    minClasses: int = Field(
        1, ge=1, le=4, description="How many of lower case, upper case, digits and others are required."
    )
    refuseCommon: bool = Field(False, description="Refuse the 10,000 most common passwords, in any case.")


Mebibytes = Annotated[int, Field(ge=0, lt=2**31)]


class GeneratedPasswords(Strict):
    """The form of passwords that the server generates for new users."""

    length: int = Field(12, ge=8, le=128, description="Characters.")
    specialSymbols: bool = Field(False, description="Whether each has one of !#$%&*+-=?@.")
    mixedCase: bool = Field(True, description="Whether each has lower and upper case letters.")


class DefaultQuotas(Strict):
    """Quotas of users without their own."""

    mail: Mebibytes | None = Field(None, description="MiB of mail; null: unlimited.")
    files: Mebibytes | None = Field(None, description="MiB of files; null: unlimited.")


class InstanceSettings(Strict):
    """The settings of an instance."""

    passwordPolicy: PasswordPolicy = Field(default_factory=PasswordPolicy)
    retentionDays: int | None = Field(
        None, ge=0, le=3650, description="Days a deleted user is kept; null: the server's setting."
    )
    generatedPasswords: GeneratedPasswords = Field(default_factory=GeneratedPasswords)
    confirmationHosts: list[Host] = Field(
        default_factory=list, max_length=100, description="Hosts allowed in links in mails."
    )
    httpConfirmationHosts: list[Host] = Field(
        default_factory=list,
        max_length=100,
        description="Hosts allowed in links in mails with http, too. Codes in such links are not encrypted.",
    )
    positionsByHand: bool = Field(
        False, description="True: a new account has no place in tree 0 until addToTree is called."
    )
    provisioningEnabled: bool = Field(
        True, description="False: refuse every request about its users in Workspace 365's format."
    )
    office365: Office365 | None = Field(None, description="For createInOffice365; null: not possible.")
    maxUsers: int | None = Field(
        None, ge=1, lt=2**53, description="Most users, without deleted and with suspended; null: unlimited."
    )
    defaultQuotas: DefaultQuotas = Field(default_factory=DefaultQuotas)
    ratePerMinute: int | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="Calls a minute of all its keys together, in each worker; 0: unlimited, null: the "
        "server's setting.",
    )


@dataclass(frozen=True, slots=True)
class Instance:
    """The instance of a call."""

    id: int
    name: str
    is_active: bool
    settings: InstanceSettings
