package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/apis/config/v1beta1"
	"sigs.k8s.io/yaml"
)

// applyKubeletArgs sets the kubelet's flags (max-pods=5) and the fields of its configuration that
// have no flag (memorySwap.swapBehavior=LimitedSwap).
func applyKubeletArgs(flags *options.KubeletFlags, config *kubeletconfig.KubeletConfiguration, args []string) error {
	var flagArgs, fieldArgs []string
	// pflag binds to fields of config, and setting a field replaces config. So fields come first.
	known := kubeletFlagSet(options.NewKubeletFlags(), &kubeletconfig.KubeletConfiguration{})
	for _, arg := range args {
		name, _, _ := strings.Cut(arg, "=")
		switch {
		case name == "config" || name == "config-dir":
			return fmt.Errorf("kubelet argument %s: mote makes the configuration; give single fields instead, like maxPods=5", name)
		case strings.ReplaceAll(name, "_", "-") == "root-dir":
			return errors.New("kubelet argument root-dir: set mote's --kubelet-dir instead")
		case known.Lookup(name) != nil:
			flagArgs = append(flagArgs, arg)
		default:
			fieldArgs = append(fieldArgs, arg)
		}
	}
	for _, arg := range fieldArgs {
		if err := setKubeletField(config, arg); err != nil {
			return err
		}
	}
	return setFlags("kubelet", kubeletFlagSet(flags, config), flagArgs)
}

func kubeletFlagSet(flags *options.KubeletFlags, config *kubeletconfig.KubeletConfiguration) *pflag.FlagSet {
	set := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	set.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	flags.AddFlags(set)
	options.AddKubeletConfigFlags(set, config)
	options.AddGlobalFlags(set)
	return set
}

// setFlags sets arguments of the form name=value. A bare name means name=true.
func setFlags(component string, set *pflag.FlagSet, args []string) error {
	set.SetOutput(io.Discard) // upstream reports each flag that is also a field as "deprecated"
	for _, arg := range args {
		name, value, found := strings.Cut(arg, "=")
		if !found {
			value = "true"
		}
		if set.Lookup(name) == nil {
			return fmt.Errorf("unknown %s argument %q", component, name)
		}
		if err := set.Set(name, value); err != nil {
			return fmt.Errorf("%s argument %s: %w", component, arg, err)
		}
	}
	return nil
}

// setKubeletField sets one field by its name in the kubelet's configuration API, with dots between
// levels. A field that is a map (evictionHard) gets the given keys and keeps its others.
func setKubeletField(config *kubeletconfig.KubeletConfiguration, arg string) error {
	path, value, found := strings.Cut(arg, "=")
	if !found {
		return fmt.Errorf("unknown kubelet argument %q", path)
	}
	var parsed any
	if err := yaml.Unmarshal([]byte(value), &parsed); err != nil {
		return fmt.Errorf("kubelet argument %s: %w", arg, err)
	}
	keys := strings.Split(path, ".")
	for i := len(keys) - 1; i >= 0; i-- {
		parsed = map[string]any{keys[i]: parsed}
	}
	patch, err := json.Marshal(parsed)
	if err != nil {
		return fmt.Errorf("kubelet argument %s: %w", arg, err)
	}
	var versioned kubeletv1beta1.KubeletConfiguration
	if err := v1beta1.Convert_config_KubeletConfiguration_To_v1beta1_KubeletConfiguration(config, &versioned, nil); err != nil {
		return fmt.Errorf("kubelet argument %s: %w", arg, err)
	}
	if err := yaml.UnmarshalStrict(patch, &versioned); err != nil {
		if strings.Contains(err.Error(), "unknown field") {
			return fmt.Errorf("unknown kubelet argument %q", path)
		}
		return fmt.Errorf("kubelet argument %s: %w", arg, err)
	}
	if err := v1beta1.Convert_v1beta1_KubeletConfiguration_To_config_KubeletConfiguration(&versioned, config, nil); err != nil {
		return fmt.Errorf("kubelet argument %s: %w", arg, err)
	}
	return nil
}
